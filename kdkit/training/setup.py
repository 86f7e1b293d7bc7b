"""Preparing a task and its batches for training: memory format, EMA, compilation, DistributedDataParallel, autocast."""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch.nn.parallel import DistributedDataParallel

from kdkit.errors import ConfigError
from kdkit.runtime import distributed
from kdkit.tasks import TrainingTask
from kdkit.training.config import TrainConfig
from kdkit.types import Batch


def prepare(task: TrainingTask, config: TrainConfig, device: torch.device) -> None:
    """Applies memory format, moving average, compilation and DistributedDataParallel, in order of dependence.

    Raises:
        ConfigError: on several ranks, the task wraps nothing that would keep their weights equal.
    """
    if config.channels_last:
        task.to(memory_format=torch.channels_last)
    start_average(task, config)
    if config.compile:
        task.compile()
        task.compile_ema()
    if distributed.world_size() > 1 and not isinstance(task.get_trainable_module(), DistributedDataParallel):
        _prepare_distributed(task, device)


def _prepare_distributed(task: TrainingTask, device: torch.device) -> None:
    modules = list(task.modules())
    task.prepare_distributed(device_ids=[device.index] if device.type == "cuda" else None)
    if list(task.modules()) == modules:
        raise ConfigError(
            f"{type(task).__name__}.prepare_distributed wraps nothing, so each of the {distributed.world_size()} ranks "
            "would train a model of its own: override it, or derive the task from kdkit.tasks.StudentTask"
        )


def to_memory_format(batch: Batch, config: TrainConfig) -> Batch:
    """The batch in the student's memory format."""
    if not config.channels_last:
        return batch
    return dataclasses.replace(batch, input=batch.input.contiguous(memory_format=torch.channels_last))


def autocast_dtype(config: TrainConfig) -> torch.dtype | None:
    """The dtype of the student's autocast; None for none."""
    return None if config.amp is None else cast(torch.dtype, getattr(torch, config.amp))


def start_average(task: TrainingTask, config: TrainConfig) -> None:
    """Makes the moving average of the student's weights, where `config` has one and the task has none yet."""
    if config.ema_decay is not None and not task.has_ema():
        task.setup_ema(decay=config.ema_decay, use_warmup=config.ema_warmup)
