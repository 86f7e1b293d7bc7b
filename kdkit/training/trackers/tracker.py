"""The contract of trackers: their methods, and the run that they are made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """The run whose metrics are tracked."""

    folder: Path
    """Output folder; its name is the run's, and a run that resumes there is the same run."""
    project: str = "kdkit"
    """Name of the project that the run belongs to."""
    config: Record = field(default_factory=dict)
    """The run's configuration, plain values."""


class Tracker(Protocol):
    """Takes the metrics of one run, on rank 0; made by a function of a Run."""

    def log(self, record: Record, step: int) -> None:
        """Takes one record; `step` counts batches over the whole run. See `numbers` for the values to show."""
        ...

    def rewind(self, step: int) -> None:
        """Prepares for a resumed run, which repeats the steps from this one on."""
        ...

    def close(self) -> None:
        """Ends the run; no record follows."""
        ...


def numbers(record: Record) -> dict[str, float]:
    """The numbers of a record, without its names and labels."""
    return {name: value for name, value in record.items() if isinstance(value, (int, float))}
