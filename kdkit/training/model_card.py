"""The model card of an export: README.md, as model hubs show it, from what the run's folder holds."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from kdkit._version import __version__
from kdkit.errors import KdkitError, printable
from kdkit.runtime.reading import read_text, read_yaml
from kdkit.student import Student, describe_teachers
from kdkit.training.logger import SUMMARY
from kdkit.training.run import CONFIG

CARD = "README.md"
"""The file of a model card."""
_MAX_BYTES = 1 << 24
_METRICS = {"top1": "top-1", "mAP": "mAP"}


def describe_model(
    student: Student, run: Path, *, is_timm: bool, ema: bool = False, checkpoint: str | Path | None = None
) -> str:
    """The text of the model card: what the student is, what taught it, on which images, and how it was measured.

    Args:
        student: the description of the student.
        run: the folder of its run; of what is missing there, the card says nothing.
        is_timm: whether timm loads the export.
        ema: whether the weights are the moving average.
        checkpoint: the file of the weights, if it was named; of weights from elsewhere the run measured nothing.
    """
    is_own = checkpoint is None or Path(checkpoint).resolve().parent == run.resolve()
    measured = _measured(run, student.num_epochs, ema=ema) if is_own else None
    header = {"library_name": "timm" if is_timm else "kdkit"}
    tags = ["image-classification", "knowledge-distillation", "kdkit", *(["timm"] if is_timm else [])]
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _facts(student, run, measured))
    return f"""---
{yaml.safe_dump({**header, "tags": tags}, sort_keys=False)}---

# {_cell(student.model)}

Trained with kdkit {__version__}. The licence of these weights is for their author to state: it depends on the images
and the teacher.

| | |
|---|---|
{rows}
"""


def _facts(student: Student, run: Path, measured: tuple[str, float] | None) -> Iterator[tuple[str, Any]]:
    """Name and value of each row."""
    config = _config(run)
    found = config.get("train")
    training: dict[str, Any] = found if isinstance(found, dict) else {}
    yield "architecture", f"{student.model} {student.model_args or ''}".strip()
    if student.num_parameters is not None:
        yield "parameters", f"{student.num_parameters:,}"
    yield (
        "input",
        f"{student.input_size} x {student.input_size} pixels, crop {student.crop_pct:g}, {student.interpolation}",
    )
    if student.class_names is not None:
        yield "classes", len(student.class_names)
    if config:
        data = config.get("data")
        yield "training images", ", ".join(data) if isinstance(data, list) else data
        yield "teacher", _teacher(student, config)
        yield "loss", _loss(config)
        yield "training", f"{training.get('epochs')} epochs, {student.num_views or 'unknown'} views per image"
    if measured is not None:
        metric, value = measured
        yield metric, f"{value:.2f} % on {config.get('validation', 'the validation images')}"
    if student.weights is not None:
        yield "weights", student.weights


def _teacher(student: Student, config: Mapping[str, Any]) -> str:
    if teachers := describe_teachers(student.caches, student.live_teacher):
        return "; ".join(teachers)
    teacher = config.get("teacher")
    return str(teacher.get("model")) if isinstance(teacher, dict) else "none, labels alone"


def _loss(config: Mapping[str, Any]) -> str:
    labels = f"{config.get('task_loss_weight')} x labels"
    if config.get("teacher") is None and not config.get("cache"):
        return labels
    return f"{labels} + {config.get('distill_loss_weight')} x {config.get('distill_loss')}"


def _config(run: Path) -> dict[str, Any]:
    try:
        found = read_yaml(run / CONFIG, max_aliases=100)
    except KdkitError:
        return {}
    return found if isinstance(found, dict) else {}


def _measured(run: Path, num_epochs: int | None, *, ema: bool) -> tuple[str, float] | None:
    """Metric and its value in percent of the weights after so many epochs; None where they were not measured."""
    try:
        rows = list(csv.DictReader(read_text(run / SUMMARY, limit=_MAX_BYTES).splitlines()))
        row = next(row for row in rows if num_epochs is not None and int(row["epoch"]) == num_epochs - 1)
        for field, metric in _METRICS.items():
            value = row.get(f"val_ema_{field}" if ema else f"val_{field}")
            if value and math.isfinite(float(value)):
                return metric, float(value)
    except (KdkitError, ValueError, LookupError, StopIteration, csv.Error):
        pass
    return None


def _cell(value: Any) -> str:
    """A value in a cell of a Markdown table."""
    return printable(" ".join(str(value).split())).replace("|", "\\|").replace("<", "&lt;")
