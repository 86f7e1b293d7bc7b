"""The training loop: one file, read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor

from kdkit.config import TrainConfig
from kdkit.data import ReplayLoader
from kdkit.engine.evaluate import evaluate
from kdkit.engine.logger import RunLogger
from kdkit.engine.progress import Advance
from kdkit.errors import ConfigError, KdkitError, UnknownNameError, nearest
from kdkit.signals import TeacherSource
from kdkit.tasks import TrainingTask
from kdkit.teachers import Teacher

EndOfEpoch = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainReport:
    """What a training run ended with."""

    top1: float | None
    """Top-1 of the student on the validation loader after the last epoch, percent; None without such a loader."""
    train_seconds: float
    """Wall time spent in training steps, evaluation excluded."""
    images_per_second: float
    """Training images a second over that time."""
    epochs: list[dict[str, float]]
    """What was logged for each epoch."""


class NonFiniteLossError(KdkitError, ArithmeticError):
    """The loss became NaN or infinite; names epoch and terms."""


def train(
    task: TrainingTask,
    loader: ReplayLoader,
    config: TrainConfig,
    *,
    teacher_source: TeacherSource | None = None,
    validation: ReplayLoader | None = None,
    logger: RunLogger | None = None,
    advance: Advance = lambda count: None,
    end_of_epoch: EndOfEpoch = lambda epoch, record: None,
) -> TrainReport:
    """Trains `task` for `config.epochs` epochs.

    Args:
        task: what a step computes; its trainable module must be on the loader's device.
        loader: training batches, from an EpochSampler.
        config: optimiser and schedule.
        teacher_source: whose outputs are handed to the task, e.g. a cache; None where the task asks its own teacher or
            needs none.
        validation: batches to evaluate the student on after each epoch.
        logger: where the terms of every epoch go.
        advance: called with the number of images of each step.
        end_of_epoch: called with the epoch and its record, e.g. to save a checkpoint.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite at the end of an epoch.
    """
    if config.opt not in list_optimizers():
        raise UnknownNameError(f"timm has no optimiser {config.opt!r}{nearest(config.opt, list_optimizers())}")
    if len(loader) == 0:
        raise ConfigError(f"there is no batch of {config.batch_size} images to train on: lower the batch size")
    if isinstance(teacher_source, Teacher):  # as the task does with its own: the images are in the student's terms
        teacher_source = teacher_source.for_input(loader.normalization)
    optimizer = create_optimizer_v2(task.trainable_module, config.opt, lr=config.lr, weight_decay=config.weight_decay)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.lr / 100,
        min_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    records: list[dict[str, float]] = []
    num_images, train_seconds, num_updates = 0, 0.0, 0
    for epoch in range(config.epochs):
        loader.set_epoch(epoch)
        task.train()
        terms = _MeanTerms()
        begun = time.perf_counter()
        for batch in loader:
            teacher_output = () if teacher_source is None else (teacher_source(batch),)
            result = task(batch.input, batch.target, *teacher_output)
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()
            num_updates += 1
            if scheduler is not None:
                scheduler.step_update(num_updates)
            terms.add(result, len(batch.input))
            advance(len(batch.input))
        record = terms.mean()  # waits for the device, so that the time below is the time it took
        seconds = time.perf_counter() - begun
        _refuse_non_finite(epoch, record)
        num_images += terms.num_images
        train_seconds += seconds
        record |= {"images_per_second": terms.num_images / seconds, "lr": optimizer.param_groups[0]["lr"]}
        if validation is not None:
            record |= {f"val_{name}": value for name, value in evaluate(task, validation).items()}
        records.append(record)
        if logger is not None:
            logger.log_epoch({"epoch": epoch, **record})
        end_of_epoch(epoch, record)
    return TrainReport(records[-1].get("val_top1"), train_seconds, num_images / train_seconds, records)


class _MeanTerms:
    """Means of a task's scalars over an epoch, summed on their device so that no step waits for it."""

    def __init__(self) -> None:
        self.num_images = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, result: dict[str, Tensor], num_images: int) -> None:
        self.num_images += num_images
        for name, value in result.items():
            if name != "output":
                term = value.detach().double() * num_images
                self._sums[name] = self._sums[name] + term if name in self._sums else term

    def mean(self) -> dict[str, float]:
        return {name: float(total) / self.num_images for name, total in self._sums.items()}


def _refuse_non_finite(epoch: int, record: dict[str, Any]) -> None:
    if not torch.tensor(record["loss"]).isfinite():
        terms = ", ".join(f"{name} {value:g}" for name, value in record.items())
        raise NonFiniteLossError(f"the loss is not finite in epoch {epoch} ({terms}): lower the learning rate")
