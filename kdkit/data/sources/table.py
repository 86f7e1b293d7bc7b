"""A CSV or parquet file of image paths and labels."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from kdkit.data.sources.base import ImageSource, LabelRule, SourceOptions, describe
from kdkit.data.sources.columns import choose_column, choose_label
from kdkit.data.sources.image import decode_file, unreadable
from kdkit.data.sources.known import below_common_folder
from kdkit.data.sources.labels import index_labels
from kdkit.data.sources.left_out import LeftOut
from kdkit.data.sources.table_file import DELIMITERS, Table, read_table
from kdkit.errors import DatasetError, UnreadableError

_PATH_COLUMNS = ("path", "image")
_LABEL_COLUMNS = ("label",)


class TableSource:
    """Images whose paths and labels are in a .csv, .tsv or .parquet file.

    Relative paths are relative to the file's folder. A key is the path as written, without `.` and `..`; absolute paths
    are shortened by the folder that all have in common. Links are followed, and a file under two names is two samples,
    as in a folder. Labels are whole numbers, or names, which become classes in natural order; an empty label means no
    label (target -1). A table of only paths has no labels.

    Args:
        path: the file; a CSV is UTF-8 and its first line names the columns.
        image_column: column of the paths; `path` or `image` by default.
        label_column: column of the labels; `label` by default.
        labels: "none" takes every image without a label.
        skip_missing: skips rows whose file does not exist; see `kdkit.data.create_source`. They are errors when they
            are loaded otherwise.

    Attributes:
        rows: the row of the table of each sample.
        skipped: one text for each row that was skipped.

    Raises:
        DatasetError: the file cannot be read, a column is missing, a row has no path or an unusable label, or no row
            is left.
        MissingDependencyError: a parquet file needs the package pyarrow.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        labels: LabelRule | None = None,
        skip_missing: bool = False,
    ) -> None:
        self.path = Path(path)
        options = SourceOptions(image_column, label_column, labels, skip_missing)
        options.check_rule("a table")
        origin = str(path)
        table = read_table(self.path)
        columns = list(table.columns)
        names = choose_column(image_column, _PATH_COLUMNS, columns, "image_column", origin)
        column = choose_label(options, _LABEL_COLUMNS, columns, names, origin)
        paths, left_out = paths_of(table, names), LeftOut(origin, skip_missing)
        keys = below_common_folder([os.path.normpath(path) for path in paths])
        self.rows: Sequence[int] = range(len(keys))
        if skip_missing:
            self.rows = _existing(self.path.parent, paths, keys, left_out)
        self._paths = [paths[row] for row in self.rows]
        self.keys: Sequence[str] = [keys[row] for row in self.rows]
        self.class_names: Sequence[str] | None = None
        self.targets = [-1] * len(self.keys)
        if column is not None:
            labels_left = [table.columns[column][row] for row in self.rows]
            self.targets, self.class_names = index_labels(labels_left, self._paths, origin)
        self.skipped: Sequence[str] = left_out.skipped
        left_out.log()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        key, path = self.keys[index], self.path.parent / self._paths[index]
        try:
            return decode_file(path, key, str(self.path)), self.targets[index]
        except UnreadableError:
            if os.path.exists(path):  # noqa: PTH110 -- which takes any name, also one that no file can have
                raise
            error = OSError(f"it {_problem_of(str(path))}; --skip-missing leaves out such rows")
            raise unreadable(key, str(self.path), error) from None

    def __repr__(self) -> str:
        return describe(self, repr(str(self.path)))


def create(name: str, options: SourceOptions) -> ImageSource | None:
    """The images of a .csv, .tsv or .parquet file; None for anything else."""
    if Path(name).suffix.lower() not in (*DELIMITERS, ".parquet") or Path(name).is_dir():
        return None
    return TableSource(
        name,
        image_column=options.image_column,
        label_column=options.label_column,
        labels=options.labels,
        skip_missing=options.skip_missing,
    )


def _existing(folder: Path, paths: Sequence[str], keys: Sequence[str], left_out: LeftOut) -> list[int]:
    """The rows whose file exists.

    Raises:
        DatasetError: there is none.
    """
    rows = []
    for row, path in enumerate(paths):
        if (problem := _problem_of(os.path.join(folder, path))) is None:  # noqa: PTH118 -- a million Paths take seconds
            rows.append(row)
        else:
            left_out.miss(f"the image {keys[row]!r} in {left_out.origin!r} {problem}", "add it")
    if not rows:
        raise DatasetError(f"{left_out.origin!r} names no image that exists, the first: {paths[0]!r}")
    return rows


def _problem_of(path: str) -> str | None:
    """Why a path is not that of a file; None if it is."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError) as error:  # ValueError: of a path that no file can have
        return f"cannot be found ({getattr(error, 'strerror', None) or error})"
    return None if stat.S_ISREG(mode) else "is no regular file"


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
    return value
