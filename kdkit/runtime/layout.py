"""Text for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

COLUMNS = 80
_LABEL = 12


def labelled_lines(values: Mapping[str, str], *, label_width: int = _LABEL) -> str:
    """One line per label with its text beside it, wrapped at 80 columns; a path or a command is never broken."""
    return "\n".join(
        textwrap.fill(
            text,
            COLUMNS,
            initial_indent=f"{label:<{label_width}} ",
            subsequent_indent=" " * (label_width + 1),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in values.items()
    )


def wrapped(text: str) -> str:
    """A sentence wrapped at 80 columns."""
    return textwrap.fill(text, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
