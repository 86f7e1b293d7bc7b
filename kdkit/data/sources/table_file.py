"""Reads the columns of a CSV, TSV or Parquet file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from kdkit.data.sources.columns import arrow_values
from kdkit.data.sources.image import is_image
from kdkit.errors import DatasetError, MissingDependencyError, first_line
from kdkit.runtime.install import install_command
from kdkit.runtime.reading import open_binary

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Suffix of a text file -> the mark between its fields."""
_MAX_LINE = 1 << 20  # characters; a field has at most 131,072 by Python's own limit
_MAX_UNPACKED_BYTES = 8 << 30  # paths and labels of 14 million images take 2 GB


@dataclass(frozen=True)
class Table:
    """The content of a .csv, .tsv or .parquet file."""

    path: Path
    """The file."""
    columns: dict[str, list[object]]
    """Column -> its values."""
    lines: Sequence[int] = ()
    """Line of the file that each row ends in, counted from 1; empty if the file has no lines."""

    def place(self, row: int) -> str:
        """The place of a row for a message: its line, as an editor shows it, or its number from 1."""
        return f"{f'line {self.lines[row]}' if self.lines else f'row {row + 1}'} of {str(self.path)!r}"


def read_table(path: Path) -> Table:
    """Reads a .csv, .tsv or .parquet file.

    Raises:
        DatasetError: the file cannot be read, or has no row.
        MissingDependencyError: the file is Parquet, and pyarrow is not installed.
    """
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)
    if not all(table.columns.values()):
        raise DatasetError(f"the table {str(path)!r} names its columns and has no rows: expected one for each image")
    return table


def _read_text(path: Path) -> Table:
    try:
        with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(_lines(file), delimiter=DELIMITERS[path.suffix.lower()], strict=True)
            header = next(rows, [])
            table: dict[str, list[object]] = {name.strip(): [] for name in header}
            lines = []
            _check_columns(header, path)
            if len(table) != len(header) or not header:
                raise DatasetError(f"the first line of {str(path)!r} must name each column once, got {header}")
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DatasetError(
                        f"line {rows.line_num} of {str(path)!r} has {len(row)} fields, expected {len(header)}: {header}"
                    )
                lines.append(rows.line_num)
                for column, value in zip(table.values(), row, strict=True):
                    column.append(value)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        advice = ": save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise DatasetError(f"the table {str(path)!r} cannot be read: {error}{advice}") from error
    return Table(path, table, lines)


def _lines(file: TextIO) -> Iterator[str]:
    """The lines of a text file; a file without line ends is refused before it fills the memory."""
    while line := file.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            raise csv.Error(f"a line has more than {_MAX_LINE:,} characters")
        yield line


def _check_columns(header: Sequence[str], path: Path) -> None:
    """Raises DatasetError if other marks separate the fields of the first line, or if it is the row of an image."""
    mark = DELIMITERS[path.suffix.lower()]
    other = next((each for each in ";\t,|" if len(header) == 1 and each != mark and each in header[0]), None)
    if other is not None:
        kind = next((f"name it {suffix}, or " for suffix, own in DELIMITERS.items() if own == other), "")
        raise DatasetError(
            f"the first line of {str(path)!r} is one field, {header[0]!r:.60}: {kind}write it with {mark!r} between "
            f"its fields instead of {other!r}"
        )
    if (image := next((name for name in header if is_image(name.strip())), None)) is not None:
        raise DatasetError(
            f"the first line of {str(path)!r} is that of the image {image!r}: put a line with the names of the columns "
            "before it, such as path,label"
        )


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(f"{str(path)!r} needs the package pyarrow: {install_command('hfds')}") from error
    try:
        with open_binary(path) as file:
            _check_unpacked_size(pyarrow.parquet.read_metadata(file))
            table = pyarrow.parquet.read_table(file)
        return Table(path, {name: arrow_values(table.column(name)) for name in table.column_names})
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:  # a date that Python does not have
        raise DatasetError(f"the table {str(path)!r} cannot be read: {first_line(error)}") from error


def _check_unpacked_size(metadata: Any) -> None:
    """Raises ValueError for a parquet file that claims to unpack to more than a table of paths and labels may."""
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if size > _MAX_UNPACKED_BYTES:
        raise ValueError(f"it unpacks to {size:,} bytes, expected at most {_MAX_UNPACKED_BYTES:,}")
