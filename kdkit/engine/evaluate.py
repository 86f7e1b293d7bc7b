"""Evaluation of a task's student with timm's evaluator."""

from __future__ import annotations

import torch
from timm.task.evaluator import evaluation_sample_limit

from kdkit.data import ReplayLoader
from kdkit.engine import ranks
from kdkit.errors import ConfigError
from kdkit.tasks import TrainingTask


@torch.no_grad()
def evaluate(
    task: TrainingTask, loader: ReplayLoader, *, ema: bool = False, amp: torch.dtype | None = None
) -> dict[str, float]:
    """Loss (cross-entropy, nats), top1 and top5 (percent) of the task's student, or of its EMA, over `loader`.

    In a run of several ranks each takes the share that its loader's sampler names, and all get the whole's metrics, by
    rank 0's running statistics.

    Args:
        task: whose student is evaluated.
        loader: labelled images.
        ema: whether the moving average is evaluated in its place.
        amp: autocast dtype; None for none.
    """
    model = task.get_eval_model(ema=ema)
    if model is None:
        raise ConfigError("the task has no EMA to evaluate: call task.setup_ema() first")
    was_training = model.training
    model.eval()
    ranks.share_buffers(model)
    evaluator = task.create_evaluator(max_samples=evaluation_sample_limit(loader))
    for batch in loader:
        with torch.autocast(loader.device.type, dtype=amp, enabled=amp is not None):
            output = model(batch.input)
        evaluator.update(output, batch.target)
    model.train(was_training)
    return {name: float(value) for name, value in evaluator.compute(distributed=ranks.world_size() > 1).items()}
