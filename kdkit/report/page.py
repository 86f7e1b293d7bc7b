"""An HTML page in one file: nothing is loaded from anywhere, and every text that is put in is escaped."""

from __future__ import annotations

import base64
import html
import io
import json
from importlib import resources
from typing import Any

from PIL import Image

from kdkit._version import __version__
from kdkit.report.picture import LEGEND, fit
from kdkit.report.sheet import Cell, Guess, Sheet, SheetRow

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)
"""What a browser lets the page do: run and show what it holds, and load nothing."""
_NARROW = 4  # views of an image, up to which two images are side by side
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def asset(name: str) -> str:
    """Text of a file of kdkit/report/assets."""
    return (resources.files("kdkit.report") / "assets" / name).read_text(encoding="utf-8")


def escape(text: object) -> str:
    """Text as HTML shows it, also within an attribute in quotes."""
    return html.escape(str(text), quote=True)


def make_page(title: str, body: str, *, scripts: tuple[str, ...] = (), data: Any = None) -> str:
    """A whole page.

    Args:
        title: its title, not yet escaped.
        body: HTML.
        scripts: JavaScript, run in order after the body.
        data: plain values that the scripts find as JSON in the element with the id "data".
    """
    script = "".join(f"<script>{text}</script>\n" for text in scripts)
    if data is not None:
        script = f'<script type="application/json" id="data">{_to_json(data)}</script>\n{script}'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{asset('style.css')}</style>\n</head>\n<body>\n"
        f"<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n"
        f"<footer>made by kdkit {escape(__version__)}</footer>\n{script}</body>\n</html>\n"
    )


def sheet_html(sheet: Sheet, *, side: int) -> str:
    """A contact sheet as HTML, its images as JPEGs of at most `side` pixels."""
    rows = "\n".join(_row_html(row, side) for row in sheet.rows)
    columns = max((len(row.cells) for row in sheet.rows), default=1)
    kind = "sheet" if columns <= _NARROW else "sheet wide"
    return f'<p class="legend">{LEGEND}</p>\n<div class="{kind}" style="--views:{columns}">\n{rows}\n</div>'


def _row_html(row: SheetRow, side: int) -> str:
    label = (row.label or "") if row.cells else "cannot be read"
    note = "".join(f'<span class="note">{escape(text)}</span>' for text in (row.note, row.problem) if text)
    cells = "\n".join(_cell_html(cell, side, with_label=row.label is None) for cell in row.cells)
    return (
        f'<section class="image"><h3>{escape(label)} <code>{escape(row.key)}</code>{note}</h3>\n'
        f'<div class="views">\n{cells}\n</div></section>'
    )


def _cell_html(cell: Cell, side: int, *, with_label: bool) -> str:
    label = f"view {cell.view}, label {cell.label}"
    own = f'<div class="label">{escape(cell.label)}</div>' if with_label else ""
    guesses = _guesses_html("teacher" if cell.student else "", cell.teacher) + _guesses_html("student", cell.student)
    return (
        f'<figure><img src="{_data_url(cell, side)}" alt="{escape(label)}" title="{escape(label)}">'
        f"<figcaption>view {cell.view}{own}{guesses}</figcaption></figure>"
    )


def _guesses_html(source: str, guesses: tuple[Guess, ...]) -> str:
    if not guesses:
        return ""
    lines = "".join(
        f'<li class="{"right" if guess.is_label else "other"}" style="--p:{guess.probability:.4f}" '
        f'title="{escape(guess.name)}"><span>{escape(guess.name)}</span><b>{guess.probability:.3f}</b></li>'
        for guess in guesses
    )
    return f'<div class="source">{source}</div>' * bool(source) + f"<ol>{lines}</ol>"


def _data_url(cell: Cell, side: int) -> str:
    image = Image.fromarray(cell.image)
    if max(image.size) > side:
        image = fit(image, side)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _to_json(data: Any) -> str:
    """JSON that no name in it can end the script element of."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return "".join(_UNSAFE.get(char, char) for char in text)
