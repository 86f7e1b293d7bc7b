"""Preparing a task and its batches for training: memory format, EMA, compilation, DistributedDataParallel, autocast."""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdkit.data import ReplayLoader
from kdkit.errors import ConfigError
from kdkit.runtime import distributed
from kdkit.tasks import TrainingTask
from kdkit.training.config import TrainConfig
from kdkit.types import Batch


def check_trainable(config: TrainConfig, num_batches: int, validation: ReplayLoader | None) -> None:
    """Raises ConfigError unless there are batches to train on, and the validation that the schedule needs."""
    if num_batches == 0:
        raise ConfigError(f"there is no batch of {config.batch_size} images to train on: lower the batch size")
    counts = distributed.all_gather(0 if validation is None else len(validation))
    if len(set(counts)) > 1:  # between batches the ranks agree on whether to stop
        raise ConfigError(f"all ranks must have the same number of validation batches, got {counts}: use EpochSampler")
    if config.sched == "plateau" and validation is None:
        raise ConfigError("the schedule 'plateau' needs a validation metric to monitor: give validation images")


def uses_channels_last(student: nn.Module | None, config: TrainConfig, device: torch.device) -> bool:
    """Whether images and weights are laid out channels last: as configured, else on CUDA where there are convolutions.

    Tensor cores take that layout without a copy; a patch embedding alone is no reason for it.
    """
    if config.channels_last is not None:
        return config.channels_last
    if device.type != "cuda" or student is None:
        return False
    return sum(isinstance(module, nn.Conv2d) for module in student.modules()) > 1


def describe_speed(student: nn.Module, config: TrainConfig, device: torch.device) -> str:
    """The precision of a run and what makes it fast, e.g. "autocast bfloat16, TF32, channels last"."""
    parts = ["float32" if config.amp is None else f"autocast {config.amp}"]
    parts += ["TF32", "cudnn.benchmark"] if device.type == "cuda" else []
    parts += ["channels last"] if uses_channels_last(student, config, device) else []
    return ", ".join([*parts, *(["compiled"] if config.compile else [])])


def prepare(task: TrainingTask, config: TrainConfig, device: torch.device) -> None:
    """Applies memory format, moving average, compilation and DistributedDataParallel, in order of dependence.

    Raises:
        ConfigError: on several ranks, the task wraps nothing that would keep their weights equal.
    """
    if uses_channels_last(task.get_trainable_module(), config, device):
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


def wrap_again(task: TrainingTask, device: torch.device) -> None:
    """Renews DistributedDataParallel, if the task has it, after a change of what learns. Collective."""
    module = task.get_trainable_module()
    if isinstance(module, DistributedDataParallel):
        task.trainable_module = module.module
        _prepare_distributed(task, device)


def to_memory_format(batch: Batch, *, channels_last: bool) -> Batch:
    """The batch in the student's memory format."""
    if not channels_last:
        return batch
    return dataclasses.replace(batch, input=batch.input.contiguous(memory_format=torch.channels_last))


def autocast_dtype(config: TrainConfig) -> torch.dtype | None:
    """The dtype of the student's autocast; None for none."""
    return None if config.amp is None else cast(torch.dtype, getattr(torch, config.amp))


def start_average(task: TrainingTask, config: TrainConfig) -> None:
    """Makes the moving average of the student's weights, where `config` has one and the task has none yet."""
    if config.ema_decay is not None and not task.has_ema():
        task.setup_ema(decay=config.ema_decay, use_warmup=config.ema_warmup)
