"""`kdkit compare`: what several runs were and what came of them, the best first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdkit.report.run_files import Record, Run, read_runs
from kdkit.report.table import RunTable
from kdkit.training.report import MAIN_METRICS


@dataclass(frozen=True)
class RunSummary:
    """One run in figures; None if its files do not hold them."""

    run: str
    """The run's folder, and which of the runs in it."""
    student: str | None
    """timm name of the student."""
    parameters: int | None
    """Parameters of the student."""
    teacher: str | None
    """The cache, the live teacher, or "labels alone"."""
    loss: str | None
    """The distillation losses, with their weights if there are several."""
    views: int | None
    """Views of each image that it was trained on."""
    epochs: int
    """Epochs that are finished."""
    planned_epochs: int | None
    """Epochs that the run was started with."""
    best_top1: float | None
    """Best top-1 on the validation images, percent."""
    best_map: float | None
    """Best mean average precision on the validation images, percent, of runs with several labels per image."""
    best_epoch: int | None
    """Number of that epoch, from 1."""
    best_top5: float | None
    """Top-5 after that epoch, percent."""
    last_top1: float | None
    """Top-1 after the last finished epoch, percent."""
    last_top5: float | None
    """Top-5 after the last finished epoch, percent."""
    last_map: float | None
    """mAP after the last finished epoch, percent."""
    images_per_second: float | None
    """Training images per second, evaluation excluded."""
    seconds: float | None
    """Wall time of the training steps."""
    waiting: float | None
    """Share of that time in which training waited for images, 0 to 1."""
    cache_bytes: int | None
    """Bytes on disk of its caches; None if they are not there any more."""
    output: str
    """Folder of the run."""


def compare(paths: Sequence[str | Path]) -> RunTable:
    """Reads the runs at `paths`, by this version of kdkit, an older one or timm's train.py, the best first.

    A run that is cut off or damaged is read as far as it goes, and the table's `problems` name what could not be read.

    Args:
        paths: folders of runs, or folders of such folders.
    """
    runs, problems = read_runs(paths)
    return tabulate(best_first(runs), problems)


def best_first(runs: Sequence[Run]) -> list[Run]:
    """The runs by their best top-1, then those with mAP by that, and those without either last."""

    def order(run: Run) -> tuple[bool, float]:
        best, metric = best_epoch(run), metric_name(run)
        return (metric.endswith("top1"), float(best[metric])) if best is not None else (False, -1.0)

    return sorted(runs, key=order, reverse=True)


def tabulate(runs: Sequence[Run], problems: Sequence[str] = ()) -> RunTable:
    """The table of runs that were read already, in their order."""
    noted = [*problems, *(problem for run in runs for problem in run.problems)]
    return RunTable(tuple(dataclasses.asdict(summarise(run)) for run in runs), tuple(dict.fromkeys(noted)))


def summarise(run: Run) -> RunSummary:
    """The figures of one run."""
    config, best = run.config, best_epoch(run) or {}
    last, prefix = (run.epochs[-1] if run.epochs else {}), "val_ema_" if "_ema_" in metric_name(run) else "val_"
    images, seconds = _total(run.epochs, "images"), _total(run.epochs, "seconds")
    return RunSummary(
        run=run.name,
        student=_text(config.get("student")) or _text(run.student.get("model")),
        parameters=_whole(run.student.get("num_parameters")),
        teacher=describe_teacher(config),
        loss=_describe_loss(config),
        views=_whole(_part(config, "recipe").get("num_views")) or _whole(run.student.get("num_views")),
        epochs=len(run.epochs),
        planned_epochs=_whole(_part(config, "train").get("epochs", config.get("epochs"))),
        best_epoch=int(best["epoch"]) + 1 if best else None,
        **{f"best_{name.lower()}": _number(best.get(f"{prefix}{name}")) for name in ("top1", "top5", "mAP")},
        **{f"last_{name.lower()}": _number(last.get(f"{prefix}{name}")) for name in ("top1", "top5", "mAP")},
        images_per_second=images / seconds if images and seconds else None,
        seconds=seconds,
        waiting=_mean_share(run.epochs),
        cache_bytes=_cache_bytes(_caches(config)),
        output=str(run.folder),
    )


def metric_name(run: Run) -> str:
    """Name of the metric that the run's best epoch is chosen by."""
    return next((name for name in MAIN_METRICS if any(_number(epoch.get(name)) for epoch in run.epochs)), "val_top1")


def best_epoch(run: Run) -> Record | None:
    """The record of the first epoch with the best metric; None if none was measured."""
    name = metric_name(run)
    measured = [epoch for epoch in run.epochs if _number(epoch.get(name)) is not None]
    return max(measured, key=lambda epoch: float(epoch[name]), default=None)


def describe_teacher(config: Mapping[str, Any]) -> str | None:
    """The caches or the live teacher of a configuration, or "labels alone"; None if it does not tell."""
    if caches := _caches(config):
        return " + ".join(cache.name for cache in caches)
    teacher = config.get("teacher")
    if isinstance(teacher, dict):
        others = teacher.get("ensemble") or teacher.get("others") or []  # "others" until version 0.1
        members = [
            teacher,
            *(member for member in (others if isinstance(others, list) else []) if isinstance(member, dict)),
        ]
        return " + ".join(str(member.get("model")) for member in members)
    return _text(teacher) or ("labels alone" if config.get("student") else None)


def _caches(config: Mapping[str, Any]) -> list[Path]:
    caches = config.get("cache") or []
    return [Path(str(cache)) for cache in (caches if isinstance(caches, list) else [caches])]


def _cache_bytes(caches: Sequence[Path]) -> int | None:
    try:
        files = [file for cache in caches for file in (cache.iterdir() if cache.is_dir() else [cache])]
        return sum(file.stat().st_size for file in files) if files else None
    except (OSError, ValueError):  # also a name that no file can have
        return None


def _describe_loss(config: Mapping[str, Any]) -> str | None:
    if not (config.get("cache") or config.get("teacher")):
        return None
    loss = config.get("distill_loss")
    if isinstance(loss, dict):
        weights = {name: part.get("weight", 1) if isinstance(part, dict) else part for name, part in loss.items()}
        return " + ".join(str(name) if weight == 1 else f"{weight} {name}" for name, weight in weights.items())
    return _text(loss)


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _total(records: Sequence[Record], name: str) -> float | None:
    values = [value for value in (_number(record.get(name)) for record in records) if value is not None]
    return sum(values) if values else None


def _mean_share(epochs: Sequence[Record]) -> float | None:
    """The share of the time of all epochs that was waiting; None if an epoch does not tell."""
    parts = [(_number(epoch.get("waiting")), _number(epoch.get("seconds"))) for epoch in epochs]
    known = [(share * seconds, seconds) for share, seconds in parts if share is not None and seconds is not None]
    total = sum(seconds for _, seconds in known)
    return sum(waited for waited, _ in known) / total if total and len(known) == len(epochs) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
