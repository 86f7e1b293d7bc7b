"""A CSV or parquet file of image paths and labels."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kdkit.data.sources.base import ImageSource, LabelRule, SourceOptions, describe
from kdkit.data.sources.columns import choose_column, choose_label
from kdkit.data.sources.image import decode_file
from kdkit.data.sources.known import below_common_folder
from kdkit.data.sources.labels import index_labels
from kdkit.errors import DatasetError, MissingDependencyError, first_line
from kdkit.runtime.install import install_command
from kdkit.runtime.reading import open_binary

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PATH_COLUMNS = ("path", "image")
_LABEL_COLUMNS = ("label",)


class TableSource:
    """Images whose paths and labels are in a .csv, .tsv or .parquet file.

    Relative paths are relative to the file's folder. A key is the path as written; absolute paths are shortened by the
    folder that all have in common. Labels are whole numbers, or names, which become classes in natural order; an empty
    label means no label (target -1). A table of only paths has no labels.

    Args:
        path: the file; a CSV is UTF-8 and its first line names the columns.
        image_column: column of the paths; `path` or `image` by default.
        label_column: column of the labels; `label` by default.
        labels: "none" takes every image without a label.

    Raises:
        DatasetError: the file cannot be read, a column is missing, or a row has no path or an unusable label.
        MissingDependencyError: a parquet file needs the package pyarrow.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        labels: LabelRule | None = None,
    ) -> None:
        self.path = Path(path)
        options = SourceOptions(image_column, label_column, labels)
        options.check_rule("a table")
        origin = str(path)
        table = read_table(self.path)
        columns = list(table.columns)
        names = choose_column(image_column, _PATH_COLUMNS, columns, "image_column", origin)
        column = choose_label(options, _LABEL_COLUMNS, columns, names, origin)
        self._paths = paths_of(table, names)
        self.keys: Sequence[str] = below_common_folder(self._paths)
        self.class_names: Sequence[str] | None = None
        self.targets = [-1] * len(self.keys)
        if column is not None:
            self.targets, self.class_names = index_labels(table.columns[column], self._paths, origin)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        key = self.keys[index]
        return decode_file(self.path.parent / self._paths[index], key, str(self.path)), self.targets[index]

    def __repr__(self) -> str:
        return describe(self, repr(str(self.path)))


def create(name: str, options: SourceOptions) -> ImageSource | None:
    """The images of a .csv, .tsv or .parquet file; None for anything else."""
    if Path(name).suffix.lower() not in (*_DELIMITERS, ".parquet") or Path(name).is_dir():
        return None
    return TableSource(
        name, image_column=options.image_column, label_column=options.label_column, labels=options.labels
    )


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
            rows = csv.reader(file, delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
            header = next(rows, [])
            table: dict[str, list[object]] = {name.strip(): [] for name in header}
            lines = []
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
        raise DatasetError(f"the table {str(path)!r} cannot be read: {error}") from error
    return Table(path, table, lines)


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(f"{str(path)!r} needs the package pyarrow: {install_command('hfds')}") from error
    try:
        with open_binary(path) as file:
            table = pyarrow.parquet.read_table(file)
        return Table(path, {name: table.column(name).to_pylist() for name in table.column_names})
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:  # a date that Python does not have
        raise DatasetError(f"the table {str(path)!r} cannot be read: {first_line(error)}") from error


def paths_of(table: Table, column: str) -> list[str]:
    """The path of each row's image, as written.

    Raises:
        DatasetError: a row has no path, or names a file absolutely that another one names relatively.
    """
    paths = [_to_path(value, table.place(row)) for row, value in enumerate(table.columns[column])]
    if len(set(map(os.path.isabs, paths))) > 1:  # otherwise the same file has the same path
        rows: dict[str, int] = {}
        for row, path in enumerate(paths):
            if (first := rows.setdefault(os.path.normpath(Path.cwd() / table.path.parent / path), row)) != row:
                raise DatasetError(
                    f"{table.place(row)} names {path!r} of {table.place(first)} again: give each image one row"
                )
    return paths


def _to_path(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        kind = "no path" if value is None or value == "" else f"{type(value).__name__} in place of a path"
        raise DatasetError(f"{place} has {kind}: expected the path of an image in each row")
    return os.path.normpath(value)
