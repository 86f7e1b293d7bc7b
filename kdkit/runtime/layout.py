"""Text output: wrapped at 80 columns on a terminal, or earlier on a narrow one; one line each in a pipe or a file."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import TextIO

from kdkit.errors import printable

COLUMNS = 80
_UNBOUNDED = 1 << 30


def format_rate(per_second: float) -> str:
    """A speed without decimals, or with two digits where it is below ten, e.g. "1,234", "0.41"."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def print_labelled(values: Mapping[str, str], *, file: TextIO | None = None, label_width: int = 12) -> None:
    """Prints each label, followed by its text.

    Args:
        values: label -> text, in reading order.
        file: where to print; standard output by default.
        label_width: columns of the labels.
    """
    for label, text in values.items():
        _print(text, f"{label:<{label_width}} ", " " * (label_width + 1), file)


def print_wrapped(text: str, *, file: TextIO | None = None) -> None:
    """Prints a sentence, to standard output by default; paths and commands in it are never broken."""
    _print(text, "", "  ", file)


def _print(text: str, first: str, later: str, file: TextIO | None) -> None:
    file = file or sys.stdout
    lines = textwrap.wrap(
        printable(text),  # names come from files of any origin
        min(COLUMNS, shutil.get_terminal_size().columns) if file.isatty() else _UNBOUNDED,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print("\n".join(lines) or first.rstrip(), file=file, flush=True)
