"""A contact sheet as a picture."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from kdkit.report.sheet import Cell, Guess, Sheet, SheetRow

LEGEND = "Below each view: the likeliest classes and their probabilities; green is the label."
_SIDE = 144  # of a view, pixels
_GAP = 12
_LINE = 17
_LEFT = 168  # column of keys and labels
_TEXT, _FAINT, _BACKGROUND = "#1c2330", "#667085", "#ffffff"
_RIGHT_BAR, _OTHER_BAR = "#b9e3c6", "#dfe4ec"  # behind the label's class, and behind another
_MAX_SIDE = 16_000  # pixels; what a viewer still opens


def draw_sheet(sheet: Sheet) -> Image.Image:
    """The sheet as an RGB image: a line of views for each image, below each view its likeliest classes."""
    columns = max((len(row.cells) for row in sheet.rows), default=1)
    lines = max((len(_lines_of(cell)) for row in sheet.rows for cell in row.cells), default=0)
    height = _SIDE + (lines + 1) * _LINE + 2 * _GAP
    top = 4 * _GAP + 2 * _LINE
    size = (_LEFT + columns * (_SIDE + _GAP) + _GAP, top + max(1, len(sheet.rows)) * height)
    picture = Image.new("RGB", (size[0], min(size[1], _MAX_SIDE)), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    _write(draw, (_GAP, _GAP), sheet.title, size[0] - 2 * _GAP, size=16)
    _write(draw, (_GAP, 2 * _GAP + _LINE), LEGEND, size[0] - 2 * _GAP, color=_FAINT)
    for number, row in enumerate(sheet.rows):
        _draw_row(picture, draw, row, top + number * height)
    return picture


def _draw_row(picture: Image.Image, draw: ImageDraw.ImageDraw, row: SheetRow, top: int) -> None:
    lines = [(row.key, _FAINT), (row.note, _FAINT)]
    if label := row.label if row.cells else row.problem:
        lines.insert(0, (label, _TEXT))
    for number, (text, color) in enumerate(lines):
        _write(draw, (_GAP, top + number * _LINE), text, _LEFT - 2 * _GAP, color=color, from_end=text == row.key)
    for number, cell in enumerate(row.cells):
        caption = f"view {cell.view}" if row.label is not None else f"view {cell.view}: {cell.label}"
        _draw_cell(picture, draw, cell, caption, _LEFT + number * (_SIDE + _GAP), top)


def _draw_cell(picture: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, caption: str, left: int, top: int) -> None:
    picture.paste(fit(Image.fromarray(cell.image), _SIDE), (left, top))
    _write(draw, (left, top + _SIDE + 2), caption, _SIDE, color=_FAINT)
    for number, line in enumerate(_lines_of(cell), start=1):
        place = (left, top + _SIDE + 2 + number * _LINE)
        if isinstance(line, Guess):
            _draw_guess(draw, line, *place)
        else:
            _write(draw, place, line, _SIDE, color=_FAINT)


def _lines_of(cell: Cell) -> list[str | Guess]:
    """The lines below a view's caption: the teacher's classes, and the student's where one is shown."""
    return ["teacher", *cell.teacher, "student", *cell.student] if cell.student else [*cell.teacher]


def _draw_guess(draw: ImageDraw.ImageDraw, guess: Guess, left: int, top: int) -> None:
    width = round(guess.probability * _SIDE)
    draw.rectangle((left, top, left + width, top + _LINE - 3), fill=_RIGHT_BAR if guess.is_label else _OTHER_BAR)
    _write(draw, (left + 3, top), guess.name, _SIDE - 48)
    draw.text((left + _SIDE - 2, top), f"{guess.probability:.3f}", _TEXT, _font(12), anchor="ra")


def fit(image: Image.Image, side: int) -> Image.Image:
    """The image in a square of `side` pixels: a small one enlarged pixel by pixel, so that nothing is made up."""
    filter_ = Image.Resampling.NEAREST if max(image.size) <= side else Image.Resampling.LANCZOS
    scale = side / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), filter_)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    width: int,
    *,
    color: str = _TEXT,
    size: int = 12,
    from_end: bool = False,
) -> None:
    """Writes a line, cut to `width` pixels at its end, or at its beginning."""
    font = _font(size)
    text = "".join(char if char.isprintable() else "?" for char in text)
    shown = text
    while shown and draw.textlength(shown if shown == text else shown + "...", font) > width:
        shown = shown[1:] if from_end else shown[:-1]
    if shown != text:
        shown = f"...{shown}" if from_end else f"{shown}..."
    draw.text(at, shown, color, font)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
