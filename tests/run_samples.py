"""Folders of runs with known figures, written by the logger of real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from kdkit.training.logger import RunLogger


def write_run(folder: Path, top1: list[float], *, config: dict[str, Any] | None = None, **student: Any) -> Path:
    """A run with one epoch of two steps for each accuracy."""
    logger = RunLogger(folder)
    for epoch, value in enumerate(top1):
        logger.log_steps([step_record(epoch, 2 * epoch + number) for number in range(2)])
        logger.log_epoch(
            {"epoch": epoch, "loss": 1.5, "images": 100.0, "seconds": 4.0, "waiting": 0.25, "val_top1": value}
        )
    values = {"student": "resnet18", "cache": "some/t.h5", "distill_loss": "kl", "train": {"epochs": len(top1)}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, **(config or {})}))
    (folder / "student.json").write_text(json.dumps({"model": "resnet18", **student}))
    return folder


def step_record(epoch: int, step: int) -> dict[str, float]:
    """What a step of a distillation logs."""
    task_loss, kd_loss = 2.0 / (step + 1), 3.0 / (step + 1)
    terms = {
        "task_loss": task_loss,
        "kd_loss": kd_loss,
        "weighted_task_loss": task_loss,
        "weighted_kd_loss": kd_loss / 2,
    }
    return {"epoch": epoch, "step": step, "lr": 0.1, "loss": task_loss + kd_loss / 2, **terms, "agreement_top1": 50.0}
