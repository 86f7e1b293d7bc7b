"""The weight of the distillation loss, which may begin at nothing."""

from __future__ import annotations

from typing import Any

from typing_extensions import Self

from kdkit.errors import ConfigError
from kdkit.tasks import TrainingTask


class DistillWarmup:
    """The weight of the distillation loss, rising linearly from 0 over the first updates."""

    def __init__(self, task: TrainingTask, warmup_updates: int) -> None:
        self._task: Any = task
        self._updates = warmup_updates
        if warmup_updates and not hasattr(task, "distill_loss_weight"):
            raise ConfigError(f"{type(task).__name__} has no distill_loss_weight to warm up: leave the warm-up out")
        self._full = getattr(task, "distill_loss_weight", 1.0)

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
