"""The page's first part: the table of runs, which sorts, and their curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdkit.report.chart import Chart, charts_html
from kdkit.report.page import escape
from kdkit.report.table import format_count, format_percent, format_seconds, format_share

_CONTROLS = """<div class="controls"><label>smoothing <input type="range" id="smoothing" min="0" max="0.98" step="0.02"
value="0"> <output id="smoothing-value">0.00</output></label>
<span class="note">drag to zoom, double-click to zoom out; a run's box hides its curves</span></div>"""

_TEXTS = {"run": "run", "student": "student", "teacher": "teacher", "loss": "loss"}
_NUMBERS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("parameters", format_count),
    "views": ("views", format_count),
    "epochs": ("epochs", format_count),
    "best_top1": ("top-1 (epoch)", format_percent),
    "best_top5": ("top-5", format_percent),
    "best_map": ("mAP (epoch)", format_percent),
    "last_top1": ("last top-1", format_percent),
    "last_top5": ("last top-5", format_percent),
    "last_map": ("last mAP", format_percent),
    "images_per_second": ("images/s", format_count),
    "waiting": ("waiting", format_share),
    "seconds": ("time", format_seconds),
    "cache_bytes": ("bytes", format_count),
}
_ORDER = ("run", "student", "parameters", "teacher", "loss", *list(_NUMBERS)[1:])


def runs_section(rows: Sequence[Mapping[str, Any]], charts: Sequence[Chart], folder: str = "") -> str:
    """The table of runs and their curves.

    Args:
        rows: the fields of RunSummary of each run, in the order of the curves' run numbers.
        charts: the curves.
        folder: what the names of all runs begin with, which is shown once.
    """
    rows = [{**row, "run": str(row["run"]).removeprefix(folder)} for row in rows]
    place = f"<p><code>{escape(folder)}</code></p>" if folder else ""
    shown = [name for name in _ORDER if any(row[name] is not None for row in rows)]
    head = "".join(f'<th scope="col" aria-sort="none"><button>{_title(name)}</button></th>' for name in shown)
    lines = "\n".join(_line(number, row, shown) for number, row in enumerate(rows))
    table = f'<table id="runs"><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table>'
    curves = f"{_CONTROLS}\n{charts_html(charts)}" if charts else "<p>No run has a finished epoch to draw.</p>"
    return f'<h2>Runs</h2>\n{place}\n<div class="scroll">{table}</div>\n<h2>Curves</h2>\n{curves}'


def _title(name: str) -> str:
    return _NUMBERS[name][0] if name in _NUMBERS else _TEXTS[name]


def _line(number: int, row: Mapping[str, Any], shown: Sequence[str]) -> str:
    return f"<tr>{''.join(_cell(number, name, row) for name in shown)}</tr>"


def _cell(number: int, name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if name == "run":
        box = f'<input type="checkbox" checked data-run="{number}"><i class="swatch" data-run="{number}"></i>'
        return f'<td data-value="{escape(value)}"><label>{box}{escape(value)}</label></td>'
    if name in _TEXTS:
        return f'<td data-value="{escape(value or "")}">{escape(value or "-")}</td>'
    text = _NUMBERS[name][1](value)
    if name == "epochs" and row["planned_epochs"] not in (None, value):
        text += f" of {row['planned_epochs']}"
    if name in ("best_top1", "best_map") and value is not None:
        text += f" ({row['best_epoch']})"
    sortable = "" if value is None else f"{float(value)!r}"
    return f'<td class="number" data-number data-value="{sortable}">{escape(text)}</td>'
