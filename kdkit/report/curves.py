"""The curves of runs: accuracy, losses, terms, agreement, learning rate, and whatever else was logged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    "loss": "Loss",
    "agreement_top1": "Agreement of student and teacher, % of images",
    "teacher_top1": "Top-1 of the teacher on training views, %",
    "teacher_entropy": "Entropy of the teacher, nats",
    "lr": "Learning rate",
    "images_per_second": "Training images per second",
}
_PARTNERS = {
    "val_top1": ("val_ema_top1", "dashed: the moving average"),
    "val_top5": ("val_ema_top5", "dashed: the moving average"),
    "loss": ("val_loss", "dashed: on validation images"),
}


def curve_charts(runs: Sequence[Run]) -> list[Chart]:
    """A chart for each metric that one of the runs logged, the usual ones first."""
    names = list(dict.fromkeys(name for run in runs for name in _names(run)))
    taken = {partner for partner, _ in _PARTNERS.values()} | {n for n in names if n.startswith(_WEIGHTED)}
    terms = [name for name in names if f"{_WEIGHTED}{name}" in names]
    order = ["val_top1", "loss", *terms, *_KNOWN, *names]
    shown = [name for name in dict.fromkeys(order) if name in names and name not in taken]
    lonely = [name for name in taken if name in names and _main_of(name) not in names]
    count = max(1, len(runs) * (len(shown) + len(taken)))
    limit = max(_MIN_POINTS, _POINTS // count)
    return [chart for name in [*shown, *lonely] if (chart := _make_chart(name, runs, limit)).traces]


def _main_of(name: str) -> str:
    """The metric whose chart `name` is drawn in."""
    if name.startswith(_WEIGHTED):
        return name.removeprefix(_WEIGHTED)
    return next((main for main, (partner, _) in _PARTNERS.items() if partner == name), name)


def _make_chart(name: str, runs: Sequence[Run], limit: int) -> Chart:
    partner, note = _PARTNERS.get(name, (f"{_WEIGHTED}{name}", "dashed: times its weight"))
    traces = [*_traces(name, runs, limit, "solid"), *(others := [*_traces(partner, runs, limit, "dash")])]
    title = _KNOWN.get(name, name.replace("_", " ").capitalize())
    return Chart(f"curve-{name}", title, traces, note=note if others else "", x="epoch", smooth=True)


def _traces(name: str, runs: Sequence[Run], limit: int, dash: str) -> Iterator[dict[str, Any]]:
    for number, run in enumerate(runs):
        x, y = _curve(run, name, limit)
        if y:
            mode = "lines" if len(y) > 1 else "markers"
            yield {"type": "scatter", "mode": mode, "run": number, "name": run.name, "dash": dash, "x": x, "y": y}


def _curve(run: Run, name: str, limit: int) -> tuple[list[float], list[float]]:
    """The points of a metric: of steps where it was logged for them, else of epochs."""
    steps = [record for record in run.steps if _is_number(record.get(name)) and _is_number(record.get("step"))]
    if len(steps) > len(run.epochs):
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
    for record in [*run.epochs, *run.steps[-1:], *run.steps[:1]]:
        yield from (name for name, value in record.items() if _is_number(value) and name not in _HIDDEN)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
