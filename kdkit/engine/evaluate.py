"""Evaluation of a task's student with timm's evaluator."""

from __future__ import annotations

import torch

from kdkit.data import ReplayLoader
from kdkit.errors import ConfigError
from kdkit.tasks import TrainingTask


@torch.no_grad()
def evaluate(task: TrainingTask, loader: ReplayLoader, *, ema: bool = False) -> dict[str, float]:
    """Loss (cross-entropy, nats), top1 and top5 (percent) of the task's student, or of its EMA, over `loader`."""
    model = task.get_eval_model(ema=ema)
    if model is None:
        raise ConfigError("the task has no EMA to evaluate: call task.setup_ema() first")
    was_training = model.training
    model.eval()
    evaluator = task.create_evaluator()
    for batch in loader:
        evaluator.update(model(batch.input), batch.target)
    model.train(was_training)
    return {name: float(value) for name, value in evaluator.compute().items()}
