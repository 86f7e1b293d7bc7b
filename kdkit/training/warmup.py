"""The weight of the distillation loss, which may begin at nothing."""

from __future__ import annotations

from typing_extensions import Self

from kdkit.errors import ConfigError
from kdkit.tasks import TrainingTask


class DistillWarmup:
    """The weight of the distillation loss, rising linearly from 0 over the first updates."""

    def __init__(self, task: TrainingTask, warmup_updates: int) -> None:
        self._task = task
        self._updates = warmup_updates
        if warmup_updates and task.distill_loss_weight is None:
            raise ConfigError(f"{type(task).__name__} has no distill_loss_weight to warm up: leave the warm-up out")
        self._full = 1.0 if task.distill_loss_weight is None else task.distill_loss_weight

    def set(self, update: int) -> None:
        """Sets the task's weight for the update with this number, counted from 0."""
        if update <= self._updates and self._updates:
            self._task.distill_loss_weight = self._full * update / self._updates

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the task as it was, however the run ended."""
        if self._updates:
            self._task.distill_loss_weight = self._full
