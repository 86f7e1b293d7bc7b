"""Metrics on disk: metrics.jsonl holds every record, summary.csv one row per epoch; trackers get the same."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdkit.errors import CheckpointError, OutputError
from kdkit.runtime import files
from kdkit.runtime.documents import parse_json
from kdkit.runtime.reading import open_regular, shown_path
from kdkit.training.trackers.tracker import Record, Tracker

METRICS, SUMMARY = "metrics.jsonl", "summary.csv"
FILES = (METRICS, SUMMARY)
"""Files that a logger writes."""
EPOCH, STEP = "epoch", "step"
"""The two kinds of records, in their field `kind`."""


class RunLogger:
    """Appends records to `folder`/metrics.jsonl and `folder`/summary.csv, each written when the call returns.

    Args:
        folder: made if it does not exist.
        context: fields that every record gets, such as the name of one of several runs.
        trackers: get every record too.
    """

    def __init__(self, folder: str | Path, context: Record | None = None, trackers: Sequence[Tracker] = ()) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._context = dict(context or {})
        self._trackers = tuple(trackers)
        self._next_step = 0

    def with_context(self, **fields: Any) -> RunLogger:
        """Another logger of the same folder whose records get `fields` as well."""
        return RunLogger(self.folder, {**self._context, **fields}, self._trackers)

    def log_steps(self, records: Sequence[Record]) -> None:
        """Appends one record per step to metrics.jsonl."""
        self._append([{"kind": STEP, **self._context, **record} for record in records])
        for record in records:
            self._next_step = int(record["step"]) + 1
            for tracker in self._trackers:
                tracker.log(record, int(record["step"]))

    def log_epoch(self, record: Record, *, step: int = 0) -> None:
        """Appends one record to both files; a field that summary.csv has no column for yet gets one.

        Args:
            record: means and metrics of the epoch.
            step: number of its last step, for the trackers.
        """
        full = _finite({**self._context, **record})
        self._append([{"kind": EPOCH, **full}])
        path = self.folder / SUMMARY
        with files.typed_errors(path):
            rows = _read_rows(path)
            columns = list(dict.fromkeys([*(rows[0] if rows else ()), *full]))
            if rows and columns == list(rows[0]):
                with open(path, "a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, columns).writerow(full)
            else:
                _write_rows(path, [*rows, full])
        for tracker in self._trackers:
            tracker.log({f"epoch/{name}": value for name, value in record.items()}, step)

    def position(self) -> dict[str, int]:
        """Where metrics.jsonl ends, in bytes, and the next step; all records before it are on the disk."""
        path = self.folder / METRICS
        with files.typed_errors(path), open(path, "ab") as file:
            os.fsync(file.fileno())
            return {"bytes": file.tell(), "step": self._next_step}

    def rewind(self, position: Mapping[str, int]) -> None:
        """Cuts the files back to a position, so that repeated steps are not logged twice.

        Raises:
            CheckpointError: metrics.jsonl is shorter than it was, or not as it was written.
        """
        path = self.folder / METRICS
        size = path.stat().st_size if path.exists() else 0
        if size < position["bytes"]:
            raise CheckpointError(
                f"{str(path)!r} has {size} bytes, but had {position['bytes']} when the checkpoint was written: "
                "put it back, or start another run"
            )
        with files.typed_errors(path):
            os.truncate(path, position["bytes"])
            epochs = [record for record in _read_records(path) if record.pop("kind") == EPOCH]
            if epochs:
                _write_rows(self.folder / SUMMARY, epochs)
            else:
                files.remove_file(self.folder / SUMMARY)
        self._next_step = position["step"]
        for tracker in self._trackers:
            tracker.rewind(position["step"])

    def close(self) -> None:
        """Ends the run in every tracker."""
        for tracker in self._trackers:
            tracker.close()

    def _append(self, records: Sequence[Record]) -> None:
        path = self.folder / METRICS
        with files.typed_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(_finite(record), allow_nan=False) + "\n" for record in records))


def _finite(record: Record) -> dict[str, Any]:
    """The record with None for a number that is not finite, such as a ratio to zero: JSON cannot hold it."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }


def _read_records(path: Path) -> list[dict[str, Any]]:
    """The records in metrics.jsonl."""
    records = []
    with open_regular(path, error=CheckpointError) as file:
        for number, line in enumerate(file, start=1):
            origin = f"{shown_path(path)}, line {number},"
            record = parse_json(line, origin, error=CheckpointError)
            if not isinstance(record, dict) or record.get("kind") not in (EPOCH, STEP):
                raise CheckpointError(f"{origin} is not a record of a run: put the file back, or start another run")
            records.append(record)
    return records


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open_regular(path, error=OutputError) as file, io.TextIOWrapper(file, "utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _write_rows(path: Path, rows: Sequence[Record]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())
