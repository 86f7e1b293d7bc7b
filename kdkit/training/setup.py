"""What is done to a task and its batches before they meet in a step."""

from __future__ import annotations

import dataclasses

import torch
from torch.nn.parallel import DistributedDataParallel

from kdkit.runtime import distributed
from kdkit.tasks import TrainingTask
from kdkit.training.config import TrainConfig
from kdkit.types import Batch


def prepare(task: TrainingTask, config: TrainConfig, device: torch.device) -> None:
    """Memory format, moving average, compilation and DistributedDataParallel, in the order that they need."""
    if config.channels_last:
        task.to(memory_format=torch.channels_last)
    start_average(task, config)
    if config.compile:
        task.compile()
        task.compile_ema()
    if distributed.world_size() > 1 and not isinstance(task.get_trainable_module(), DistributedDataParallel):
        task.prepare_distributed(device_ids=[device.index] if device.type == "cuda" else None)


def to_memory_format(batch: Batch, config: TrainConfig) -> Batch:
    """The batch in the memory format that the student has."""
    if not config.channels_last:
        return batch
    return dataclasses.replace(batch, input=batch.input.contiguous(memory_format=torch.channels_last))


def start_average(task: TrainingTask, config: TrainConfig) -> None:
    """Makes the moving average of the student's weights that `config` asks for, where there is none yet."""
    if config.ema_decay is not None and not task.has_ema():
        task.setup_ema(decay=config.ema_decay, use_warmup=config.ema_warmup)
