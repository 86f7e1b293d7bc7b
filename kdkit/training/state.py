"""The state of a run: everything that its next step depends on, as a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from kdkit.runtime import distributed
from kdkit.tasks import TrainingTask
from kdkit.training.optimizer import load_schedule_state, schedule_state
from kdkit.training.rng import rng_state, set_rng_state


@dataclass
class Position:
    """Progress of a run."""

    epoch: int = 0
    """Current epoch, counted from 0."""
    batch: int = 0
    """Finished batches of that epoch; always whole updates."""
    update: int = 0
    """Finished updates of the weights, over all epochs."""


@dataclass
class RunState:
    """Everything that a step depends on, and the records of the run so far."""

    task: TrainingTask
    optimizer: Optimizer
    scheduler: Scheduler | None
    scaler: torch.amp.GradScaler
    device: torch.device
    position: Position = field(default_factory=Position)
    sums: dict[str, float] = field(default_factory=dict)
    """The meter's sums over the current epoch."""
    records: list[dict[str, float]] = field(default_factory=list)
    """Records of the finished epochs."""
    best: float | None = None
    """Best metric so far."""
    log: dict[str, Any] = field(default_factory=dict)
    """The logger's position."""

    def to_dict(self) -> dict[str, Any]:
        """The contents of a checkpoint. A collective call: each rank adds its random generators."""
        random = distributed.all_gather(rng_state(self.device))
        position = self.position
        state = {
            "epoch": position.epoch - 1,  # the last finished one: timm resumes with the next
            "arch": type(self.task).__name__.lower(),
            "version": 2,
            "optimizer": self.optimizer.state_dict(),
            "amp_scaler": self.scaler.state_dict(),
            **self.task.get_checkpoint_state(),
            **self.task.get_checkpoint_state(ema=True),
        }
        own = {
            "position": vars(position).copy(),
            "scheduler": None if self.scheduler is None else schedule_state(self.scheduler),
            "random": random,
            "sums": dict(self.sums),
            "records": list(self.records),
            "best": self.best,
            "log": dict(self.log),
        }
        return {**state, "kdkit": own}

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `to_dict`, on every rank."""
        own = state["kdkit"]
        self.task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
        if self.task.has_ema():
            self.task.load_checkpoint_state(state["state_dict_ema"], state.get("task_state_ema"), ema=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["amp_scaler"])
        if self.scheduler is not None:
            load_schedule_state(self.scheduler, own["scheduler"])
        self.position = Position(**own["position"])
        self.sums, self.records, self.best, self.log = own["sums"], own["records"], own["best"], own["log"]
        set_rng_state(own["random"][distributed.rank()], self.device)
