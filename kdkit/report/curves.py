"""The curves of runs: accuracy, losses, terms, agreement, learning rate, and whatever else was logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdkit.report.chart import Chart
from kdkit.report.run_files import Record, Run

_POINTS = 30_000  # of all curves together: about 500 kB of the page, and what a browser draws at once
_MIN_POINTS = 20
_WEIGHTED = "weighted_"
_HIDDEN = ("epoch", "step", "images", "seconds", "seed")
_KNOWN = {
    "val_top1": "Top-1 on validation images, %",
    "val_top5": "Top-5 on validation images, %",
    "val_mAP": "Mean average precision (mAP) on validation images, %",
    "loss": "Loss",
    "task_loss": "task_loss: loss on labels",
    "kd_loss": "kd_loss: distillation loss",
    "agreement_top1": "Agreement of student and teacher, % of images",
    "teacher_top1": "Top-1 of the teacher on training views, %",
    "teacher_entropy": "Entropy of the teacher, nats",
    "lr": "Learning rate",
    "gradient_task_loss": "Gradient of task_loss at the head, norm",
    "gradient_kd_loss": "Gradient of kd_loss at the head, norm",
    "gradient_ratio": "Gradient of kd_loss relative to task_loss",
    "images_per_second": "Training images per second",
    "waiting": "Share of the training time spent waiting for images",
}
_PARTNERS = {
    "val_top1": {"val_ema_top1": "dashed: the moving average"},
    "val_top5": {"val_ema_top5": "dashed: the moving average"},
    "val_mAP": {"val_ema_mAP": "dashed: the moving average"},
    "loss": {"val_loss": "dashed: on validation images", "val_ema_loss": "dotted: so the moving average"},
}
"""Metrics that are drawn in the chart of another one, and how they look there."""
_DASHES = ("dash", "dot")


def curve_charts(runs: Sequence[Run], labels: Sequence[str]) -> list[Chart]:
    """A chart for each metric that one of the runs logged, the usual ones first; `labels` are the runs' names."""
    names = list(dict.fromkeys(name for run in runs for name in _names(run)))
    terms = [name for name in names if f"{_WEIGHTED}{name}" in names]
    order = dict.fromkeys(["val_top1", "val_mAP", "loss", *terms, *_KNOWN, *names])
    drawn_elsewhere = {partner for name in names for partner in _partners(name)}
    shown = [name for name in order if name in names and name not in drawn_elsewhere]
    limit = max(_MIN_POINTS, _POINTS // max(1, len(runs) * len(names)))
    return [_make_chart(name, runs, labels, limit) for name in shown]


def _partners(name: str) -> Mapping[str, str]:
    """Metrics that are drawn beside `name`, and how they look."""
    return _PARTNERS.get(name, {f"{_WEIGHTED}{name}": "dashed: times its weight"})


def _make_chart(name: str, runs: Sequence[Run], labels: Sequence[str], limit: int) -> Chart:
    traces, notes = list(_traces(name, runs, labels, limit, "solid")), []
    for dash, (partner, note) in zip(_DASHES, _partners(name).items(), strict=False):
        others = list(_traces(partner, runs, labels, limit, dash))
        traces += others
        notes += [note] * bool(others)
    title = _KNOWN.get(name, name.replace("_", " "))
    return Chart(f"curve-{name}", title, traces, note="; ".join(notes), x="epoch", smooth=True)


def _traces(name: str, runs: Sequence[Run], labels: Sequence[str], limit: int, dash: str) -> Iterator[dict[str, Any]]:
    for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
        x, y = _curve(run, name, limit)
        if y:
            mode = "lines" if len(y) > 1 else "markers"
            yield {"type": "scatter", "mode": mode, "run": number, "name": label, "dash": dash, "x": x, "y": y}


def _curve(run: Run, name: str, limit: int) -> tuple[list[float], list[float]]:
    """The points of a metric: of steps where it was logged for them, else of epochs."""
    steps = [record for record in run.steps if _is_number(record.get(name)) and _is_number(record.get("step"))]
    if (steps and not any(name in epoch for epoch in run.epochs)) or len(steps) > len(run.epochs):
        per_epoch = _steps_per_epoch(run.steps)
        points = [((record["step"] + 1) / per_epoch, record[name]) for record in steps]
    else:
        points = [(record["epoch"] + 1, record[name]) for record in run.epochs if _is_number(record.get(name))]
    points = _thin(points, limit)
    return [float(x) for x, _ in points], [float(y) for _, y in points]


def _steps_per_epoch(steps: Sequence[Record]) -> int:
    """Steps are counted over the whole run: step s of epoch e has at least (s + 1) / (e + 1) of them in an epoch."""
    known = [record for record in steps if _is_number(record.get("epoch")) and _is_number(record.get("step"))]
    return max((-(-int(record["step"] + 1) // int(record["epoch"] + 1)) for record in known), default=1)


def _thin(points: list[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """At most about `limit` points, evenly spread, with the last one."""
    stride = -(-len(points) // limit)
    return points[:: stride or 1] + (points[-1:] if stride > 1 and (len(points) - 1) % stride else [])


def _names(run: Run) -> Iterator[str]:
    for record in [*run.epochs, *run.steps]:
        yield from (name for name, value in record.items() if _is_number(value) and name not in _HIDDEN)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
