"""A table of runs as text that fits a terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size

Row = Mapping[str, Any]
_MISSING = "-"
_LONGEST = 28  # cells of a text column, while there are columns to drop
_GAP = 2


@dataclass(frozen=True)
class _Column:
    title: str
    show: Callable[[Row], str]
    is_text: bool = False


def format_count(value: float | None) -> str:
    """A large number in three digits: 11.7 M."""
    if value is None:
        return _MISSING
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:,.0f}"


def format_seconds(seconds: float | None) -> str:
    """A time in its two largest units: 1 h 05 min."""
    if seconds is None:
        return _MISSING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def format_percent(value: float | None) -> str:
    """A percentage with two digits, without its sign."""
    return _MISSING if value is None else f"{value:.2f}"


def format_share(value: float | None) -> str:
    """A share from 0 to 1 as a whole percentage."""
    return _MISSING if value is None else f"{value:.0%}"


def _text(name: str) -> Callable[[Row], str]:
    return lambda row: _MISSING if row[name] is None else str(row[name])


def _epochs(row: Row) -> str:
    planned = row["planned_epochs"]
    return f"{row['epochs']} of {planned}" if planned not in (None, row["epochs"]) else f"{row['epochs']}"


def _best(name: str) -> Callable[[Row], str]:
    return lambda row: _MISSING if row[name] is None else f"{format_percent(row[name])} ({row['best_epoch']})"


_COLUMNS = {
    "run": _Column("run", _text("run"), is_text=True),
    "student": _Column("student", _text("student"), is_text=True),
    "parameters": _Column("param.", lambda row: format_count(row["parameters"])),
    "teacher": _Column("teacher", _text("teacher"), is_text=True),
    "loss": _Column("loss", _text("loss"), is_text=True),
    "views": _Column("views", _text("views")),
    "epochs": _Column("epochs", _epochs),
    "best": _Column("top-1 (epoch)", _best("best_top1")),
    "best mAP": _Column("mAP (epoch)", _best("best_map")),
    "last": _Column("last", lambda row: format_percent(row["last_map" if row["last_top1"] is None else "last_top1"])),
    "speed": _Column("images/s", lambda row: format_count(row["images_per_second"])),
    "waiting": _Column("waiting", lambda row: format_share(row["waiting"])),
    "time": _Column("time", lambda row: format_seconds(row["seconds"])),
}
_DROPPED_FIRST = ("waiting", "speed", "parameters", "views", "time", "last", "loss", "epochs", "student", "teacher")


@dataclass(frozen=True)
class RunTable:
    """Runs side by side."""

    rows: tuple[Row, ...]
    """The fields of kdkit.report.comparison.RunSummary of each run."""
    problems: tuple[str, ...] = ()
    """What could not be read, one line each."""

    def __str__(self) -> str:
        return self.text(80)

    def text(self, width: int) -> str:
        """The table in lines of at most `width` characters; columns for which there is no room are named below it."""
        prefix = common_folder([str(row["run"]) for row in self.rows])
        rows = [{**row, "run": str(row["run"])[len(prefix) :]} for row in self.rows]
        cells = {
            name: [column.title, *(_printable(column.show(row)) for row in rows)] for name, column in _COLUMNS.items()
        }
        shown = {name: column for name, column in cells.items() if name == "run" or {*column[1:]} != {_MISSING}}
        dropped = []
        for name in _DROPPED_FIRST:
            if _width(shown) > width and name in shown:
                dropped.append(_COLUMNS[name].title)
                del shown[name]
        notes = [f"runs in {prefix}"] * bool(prefix)
        if dropped:
            notes.append(f"no room for {', '.join(dropped)}: --csv and --json have every figure")
        lines = _lay_out(shown, width) if rows else ["no run was found"]
        for note in [*notes, *self.problems]:
            lines += textwrap.wrap(_printable(note), width, subsequent_indent="  ", break_on_hyphens=False)
        return "\n".join(line.rstrip() for line in lines)

    def to_json(self) -> str:
        """{"runs": [...], "problems": [...]}, every figure at full precision."""
        return json.dumps({"runs": self.rows, "problems": self.problems}, indent=2)

    def to_csv(self) -> str:
        """A header and one line per run, every figure at full precision."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]) if self.rows else ["run"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue().rstrip("\n")


def _width(cells: Mapping[str, Sequence[str]]) -> int:
    """Characters of a line, long names cut."""
    return sum(min(max(map(cell_len, column)), _LONGEST) + _GAP for column in cells.values()) - _GAP


def _lay_out(cells: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """The lines of a table; the longest column of text is cut until they fit."""
    widths = {name: max(map(cell_len, column)) for name, column in cells.items()}
    texts = [name for name in cells if _COLUMNS[name].is_text]
    while sum(widths.values()) + _GAP * (len(widths) - 1) > width and (
        longest := max(texts, key=lambda name: widths[name])
    ):
        if widths[longest] <= 3:
            break
        widths[longest] -= 1
    padded = [
        [_fit(text, widths[name], left=_COLUMNS[name].is_text) for text in column] for name, column in cells.items()
    ]
    return [(" " * _GAP).join(line) for line in zip(*padded, strict=True)]


def _fit(text: str, width: int, *, left: bool) -> str:
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    space = " " * (width - cell_len(text))
    return text + space if left else space + text


def common_folder(names: Sequence[str]) -> str:
    """What all names begin with, up to a slash."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, same) + 1]


def _printable(text: str) -> str:
    """The same without control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)
