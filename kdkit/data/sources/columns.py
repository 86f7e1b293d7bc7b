"""Which column of a table holds the images, and which the labels; the values of a column of Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdkit.data.sources.base import SourceOptions
from kdkit.errors import DatasetError, nearest


def choose_column(given: str | None, usual: Sequence[str], names: Sequence[str], option: str, origin: str) -> str:
    """The column `given`, or the only one with a usual name.

    Args:
        given: the column that the user names, if any.
        usual: names that it has by convention.
        names: columns of the table.
        option: how the user names it, for messages.
        origin: the table, for messages.

    Raises:
        DatasetError: there is none, or there are several.
    """
    if given is not None:
        if given not in names:
            raise DatasetError(f"{origin!r} has no column {given!r}{nearest(given, names)}; it has {', '.join(names)}")
        return given
    found = [name for name in usual if name in names]
    if len(found) != 1:
        what = " and ".join(map(repr, found)) if found else f"no column {' or '.join(map(repr, usual))}"
        raise DatasetError(
            f"{origin!r} has {what} among its columns {', '.join(names)}: name one with --{option.replace('_', '-')}"
        )
    return found[0]


def choose_label(
    options: SourceOptions, usual: Sequence[str], names: Sequence[str], image: str, origin: str
) -> str | None:
    """The column of the labels, as `choose_column` finds it; None without labels, or if `image` is the only column."""
    if options.labels == "none" or (options.label_column is None and set(names) == {image}):
        return None
    column = choose_column(options.label_column, usual, names, "label_column", origin)
    if column == image:
        raise DatasetError(f"{origin!r} has its images and its labels in one column, {image!r}: expected two")
    return column


def arrow_values(column: Any) -> list[Any]:
    """The values of an Arrow column, as Python's; of uint8 and uint16 as NumPy's, whose largest may mean no label."""
    values: list[Any] = column.to_pylist()
    kind = {"uint8": np.uint8, "uint16": np.uint16}.get(str(column.type))
    return values if kind is None else [None if value is None else kind(value) for value in values]
