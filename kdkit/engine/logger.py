"""Metrics on disk: metrics.jsonl holds every record, summary.csv one row an epoch."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

FILES = ("metrics.jsonl", "summary.csv")
"""What a logger writes."""


class RunLogger:
    """Appends records to `folder`/metrics.jsonl and `folder`/summary.csv, each written when the call returns.

    Args:
        folder: made if it does not exist.
        context: fields that every record gets, such as which of several runs it is about.
    """

    def __init__(self, folder: str | Path, context: Record | None = None) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._context = dict(context or {})

    def with_context(self, **fields: Any) -> RunLogger:
        """Another logger of the same folder whose records get `fields` as well."""
        return RunLogger(self.folder, {**self._context, **fields})

    def log(self, record: Record) -> None:
        """Appends one record to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({**self._context, **record}) + "\n")

    def log_epoch(self, record: Record) -> None:
        """Appends one record to both files; a field that summary.csv has no column for yet gets one."""
        self.log(record)
        row = {name: str(value) for name, value in {**self._context, **record}.items()}
        path = self.folder / "summary.csv"
        rows = _read_rows(path)
        columns = list(dict.fromkeys([*(rows[0] if rows else ()), *row]))
        if rows and columns == list(rows[0]):
            with open(path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, columns).writerow(row)
            return
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows([*rows, row])


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
