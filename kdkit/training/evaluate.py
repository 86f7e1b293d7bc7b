"""Evaluation of a task's student with timm's evaluator."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdkit.data import EpochSampler, ReplayLoader
from kdkit.data.sampler import Index
from kdkit.errors import ConfigError, DatasetError
from kdkit.runtime import distributed
from kdkit.runtime.model_errors import logits_of, model_errors
from kdkit.tasks import TrainingTask
from kdkit.types import Batch

Between = Callable[[], None]
"""Called after each batch on every rank; an exception that it raises ends the evaluation."""


def _nothing() -> None: ...


def evaluate_each(
    task: TrainingTask, loader: ReplayLoader, *, amp: torch.dtype | None = None, between: Between = _nothing
) -> dict[str, float]:
    """Evaluates the student, as val_NAME, and its EMA if there is one, as val_ema_NAME; see `evaluate`."""
    record: dict[str, float] = {}
    for prefix, ema in {"val_": False, "val_ema_": True}.items():
        if not ema or task.has_ema():
            metrics = evaluate(task, loader, ema=ema, amp=amp, between=between)
            record |= {f"{prefix}{name}": value for name, value in metrics.items()}
    return record


def evaluate(
    task: TrainingTask,
    loader: ReplayLoader,
    *,
    ema: bool = False,
    amp: torch.dtype | None = None,
    between: Between = _nothing,
) -> dict[str, float]:
    """Loss (cross-entropy, nats), top1 and top5 (percent) of the task's student, or of its EMA, over `loader`.

    In a run of several ranks each evaluates the share that its loader's sampler names, with rank 0's running
    statistics, and every rank gets the metrics over all images.

    Args:
        task: the task whose student is evaluated; its training mode is restored, also where `between` raises.
        loader: labelled images; those without a label (target -1) take no part.
        ema: whether the moving average is evaluated instead.
        amp: autocast dtype; None for none.
        between: called after each batch on every rank, e.g. to stop.

    Raises:
        ConfigError: `ema` is True and the task has no EMA.
    """
    model = task.get_eval_model(ema=ema)
    if model is None:
        raise ConfigError("the task has no EMA to evaluate: call task.setup_ema() first")
    was_training = model.training
    model.eval()
    try:
        distributed.broadcast_buffers(model)
        return _metrics(task, model, loader, amp, between)
    finally:
        model.train(was_training)


def _metrics(
    task: TrainingTask, model: nn.Module, loader: ReplayLoader, amp: torch.dtype | None, between: Between
) -> dict[str, float]:
    evaluator, once = task.create_evaluator(device=loader.device), _Once(loader)
    targets = loader.dataset.targets
    may_lack_labels, left = targets is None or bool((targets < 0).any()), len(loader)
    for batch in loader:
        with (
            model_errors("the student", batch.input, amp),
            torch.no_grad(),
            torch.autocast(loader.device.type, dtype=amp, enabled=amp is not None),
        ):
            output = logits_of(model(batch.input), "the student")
        counted = once.take(batch)
        if not all(counted):
            output, batch = output[counted], dataclasses.replace(batch, target=batch.target[counted])
        evaluator.update(*(_labelled(output, batch.target) if may_lack_labels else (output, batch.target)))
        left -= 1
        between()
    for _ in range(left):  # the batches without a readable image: all ranks make as many calls
        between()
    if not any(distributed.all_gather(left < len(loader))):  # of one process the loader has raised
        raise DatasetError("no image of the validation could be read")
    return {name: float(value) for name, value in evaluator.compute(distributed=distributed.world_size() > 1).items()}


class _Once:
    """Which samples of each batch count: those that the sampler repeats, so that all ranks have as many, do not."""

    def __init__(self, loader: ReplayLoader) -> None:
        self._sampler = loader.sampler
        self._left: Counter[Index] | None = None

    def take(self, batch: Batch) -> list[bool]:
        """Whether each sample of the next batch counts."""
        if not isinstance(self._sampler, EpochSampler) or batch.row is None:
            return [True] * len(batch.input)
        if self._left is None:  # the first batch of the pass, whose epoch the sampler has by now
            self._left = Counter(self._sampler.own_pairs())
        rows = batch.row.tolist()
        views = batch.view.tolist() if isinstance(batch.view, Tensor) else [batch.view] * len(rows)
        counted = []
        for pair in zip(rows, views, strict=True):
            counted.append(self._left[pair] > 0)
            self._left[pair] -= 1
        return counted


def _labelled(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The samples that have a label: their output [B, C] and class index [B]; soft labels are left as they are."""
    if target.ndim != 1:
        return output, target
    labelled = target >= 0
    return output[labelled], target[labelled]
