"""Warm-up of the weight of the distillation loss."""

from __future__ import annotations

from typing_extensions import Self

from kdkit.errors import ConfigError
from kdkit.tasks import TrainingTask


class DistillWarmup:
    """Raises a task's distill_loss_weight linearly from 0 over the first updates; a context that restores it at exit.

    Args:
        task: its weight is changed in place.
        warmup_updates: updates of the weights until the full weight; 0 changes nothing.

    Raises:
        ConfigError: the task has no distill_loss_weight.
    """

    def __init__(self, task: TrainingTask, warmup_updates: int) -> None:
        if warmup_updates and task.distill_loss_weight is None:
            raise ConfigError(f"{type(task).__name__} has no distill_loss_weight to warm up: leave the warm-up out")
        self._task, self._updates, self._full = task, warmup_updates, task.distill_loss_weight or 0.0

    def set(self, update: int) -> None:
        """Sets the task's weight for the update with this number, counted from 0."""
        if update <= self._updates and self._updates:
            self._task.distill_loss_weight = self._full * update / self._updates

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Restores the full weight, however the run ended."""
        if self._updates:
            self._task.distill_loss_weight = self._full
