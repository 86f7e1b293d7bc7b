"""What a training run ended with, and one epoch of it as a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdkit.runtime.progress import format_terms
from kdkit.training.meter import Record


@dataclass(frozen=True)
class TrainReport:
    """What a training run ended with."""

    top1: float | None
    """Top-1 of the student on the validation loader after the last epoch, percent; None without such a loader."""
    train_seconds: float
    """Wall time spent in training steps, evaluation excluded; of a run that was resumed, over all its parts."""
    images_per_second: float
    """Training images a second over that time."""
    epochs: list[dict[str, float]]
    """What was logged for each epoch."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> TrainReport:
        """The report of a run with these records, one an epoch."""
        seconds = sum(record["seconds"] for record in records)
        num_images = sum(record["images"] for record in records)
        return cls(records[-1].get("val_top1"), seconds, num_images / seconds, list(records))


def epoch_line(epoch: int, epochs: int, record: Record) -> str:
    """One epoch as one line."""
    names = {"val_top1": "top-1", "val_ema_top1": "EMA top-1"}
    validated = "".join(f", {text} {record[name]:.2f} %" for name, text in names.items() if name in record)
    speed = record["images_per_second"]
    return f"epoch {epoch + 1} of {epochs}: {format_terms(record)}{validated}, {speed:,.0f} images/s"
