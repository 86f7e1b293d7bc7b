"""The result of a training run, and one epoch of it as a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdkit.runtime.layout import format_rate
from kdkit.training.meter import Record
from kdkit.training.preflight import PreflightReport

_WAITING_SHARE, _WAITING_SECONDS = 0.2, 5.0  # of an epoch, from which on advice is given
MAIN_METRICS = ("val_ema_top1", "val_top1", "val_ema_mAP", "val_mAP")
"""The metrics by which epochs are compared: the first one that a run has."""


@dataclass(frozen=True)
class TrainReport:
    """The result of a training run."""

    top1: float | None
    """Top-1 of the student on the validation loader after the last epoch, percent; None without such a loader."""
    train_seconds: float
    """Wall time spent in training steps, evaluation excluded; of a run that was resumed, over all its parts."""
    images_per_second: float
    """Training images per second over that time."""
    epochs: list[dict[str, float]]
    """The logged record of each epoch."""

    @property
    def best(self) -> tuple[int, float] | None:
        """The epoch, counted from 1, with the best top-1 (of multi-label data mAP), and that metric in percent; of the
        EMA weights if there are any; an epoch whose metric is NaN is not the best. None without validation images."""
        found = [main_metric(record) for record in self.epochs]
        if not found or any(metric is None for metric in found):
            return None
        values = [-math.inf if metric is None or math.isnan(metric) else metric for metric in found]
        epoch = values.index(max(values))
        return epoch + 1, float(found[epoch] or 0.0)

    @classmethod
    def of(cls, records: Sequence[Record]) -> TrainReport:
        """The report of a run with these records, one per epoch."""
        seconds = sum(record["seconds"] for record in records)
        num_images = sum(record["images"] for record in records)
        return cls(records[-1].get("val_top1"), seconds, num_images / seconds, list(records))


def main_metric(record: Record) -> float | None:
    """The metric by which epochs are compared, percent: top-1, or mAP of multi-label data; of the EMA if there is one.

    None without validation images.
    """
    return next((record[name] for name in MAIN_METRICS if name in record), None)


def waiting_advice(record: Record) -> str | None:
    """What to do about an epoch that waited for images, in a sentence; None where it hardly did.

    Args:
        record: of an epoch; the share of its seconds in which it waited is in `waiting`.
    """
    share = record.get("waiting", 0.0)
    if share <= _WAITING_SHARE or share * record["seconds"] < _WAITING_SECONDS:
        return None
    return (
        f"{share:.0%} of the epoch's time was spent waiting for images: give more loader workers (--workers), several "
        "views per decode (--views-per-decode), or smaller source images"
    )


def epoch_line(epoch: int, epochs: int, record: Record) -> str:
    """One epoch as one line of at most 80 columns, as a rule."""
    names = {"loss": "loss", "kd_loss": "kd"}
    terms = [f"{text} {record[name]:.4g}" for name, text in names.items() if name in record]
    shares = {"agreement_top1": "agree", "val_top1": "top-1", "val_mAP": "mAP"}
    shares |= {"val_ema_top1": "EMA", "val_ema_mAP": "EMA"}
    terms += [f"{text} {record[name]:.1f} %" for name, text in shares.items() if name in record]
    return f"epoch {epoch + 1}/{epochs}: {', '.join(terms)}, {format_rate(record['images_per_second'])} images/s"


@dataclass(frozen=True)
class DistillReport:
    """The result of a training run."""

    output: Path
    """Folder of the checkpoints and the metrics."""
    checkpoint: Path
    """The newest checkpoint, with the student's weights in the layout of timm's checkpoints."""
    weights: Path
    """The checkpoint with the best top-1; the newest without validation images."""
    training: TrainReport
    """Accuracy, time and terms."""
    preflight: PreflightReport | None
    """Measurements before the first step; None for a resumed run, or without the preflight check."""
