"""Multi-label targets: each image has a vector of 0 and 1, one number per class.

Dimensions: N samples, C classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdkit.data.sources.base import ImageSource, SourceOptions, describe
from kdkit.data.sources.class_order import check_names
from kdkit.data.sources.labels import MISSING, check_single
from kdkit.data.sources.mapped import MappedSource
from kdkit.data.sources.selection import SelectedSource
from kdkit.data.sources.table import TableSource
from kdkit.data.sources.table_file import Table, read_table
from kdkit.errors import DatasetError, ShapeError, first_line

_SEPARATED = re.compile(r"(?P<column>.+)\[(?P<separator>.+)\]")
_VALUES = {"0": 0.0, "1": 1.0, "": -1.0, "-1": -1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


class MultiLabelSource:
    """The images of another source with a vector of labels each, float32 [C].

    Args:
        images: a source, or a map-style dataset as MappedSource takes it, such as a datasets.Dataset.
        targets: 0 and 1 of each sample and class [N, C]; -1 where a class of an image is not labelled. By default the
            dataset's own, where each of its items has such a vector. A table, such as a pandas.DataFrame, names classes
            by its columns.
        class_names: one name per class; by default those of the columns of `targets`, or without `targets` the
            dataset's, if there are as many. An array has no names: the dataset's are those of its own labels.

    Raises:
        ShapeError: targets are not [N, C], or hold other values.
        DatasetError: no targets are given, and the dataset has no vectors; or the columns of `targets` are in another
            order than `class_names`, or its rows in another one than the images.
    """

    def __init__(
        self,
        images: Any,
        targets: Sequence[Sequence[float]] | np.ndarray[Any, Any] | Tensor | None = None,
        *,
        class_names: Sequence[str] | None = None,
    ) -> None:
        is_source = all(hasattr(images, name) for name in ("keys", "class_names")) and not hasattr(images, "features")
        self.source: ImageSource = images if is_source else MappedSource(images)
        self.keys: Sequence[str] = self.source.keys
        self.labels: np.ndarray[Any, np.dtype[np.float32]] | None = None
        if targets is not None:
            self.labels = _as_array(targets)
            if self.labels.ndim != 2 or len(self.labels) != len(self.keys) or self.labels.shape[1] == 0:
                raise ShapeError(
                    f"multi-label targets are one vector per image, [{len(self.keys)}, C], got "
                    f"{list(self.labels.shape)}"
                )
            self._check(self.labels, self.keys)
        if len(self.keys) == 0:
            raise DatasetError("the dataset holds no samples")
        self.num_labels = len(self[0][1]) if self.labels is None else self.labels.shape[1]
        own = self.source.class_names if targets is None else _column_names(targets)
        names = list(own) if own and len(own) == self.num_labels else None
        if class_names is not None:
            names = check_names(class_names, "the class_names of multi-label targets")
            _check_order(own if targets is not None else None, names, "columns")
        _check_order(_texts(getattr(targets, "index", None)), self.keys, "rows")
        if names is not None and len(names) != self.num_labels:
            raise ShapeError(
                f"{self.num_labels} classes came with {len(names)} class_names: expected one name for each"
            )
        self.class_names: Sequence[str] | None = names

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        image, target = self.source.load(index) if isinstance(self.source, MappedSource) else self.source[index]
        if self.labels is not None:
            return image, torch.from_numpy(self.labels[index])
        vector = _as_array(target)
        if vector.ndim != 1 or len(vector) != getattr(self, "num_labels", len(vector)):
            raise DatasetError(
                f"the label of {self.keys[index]!r} is {target!r:.40}, expected a vector of 0 and 1, "
                "as long as those of all images"
            )
        self._check(vector[None], self.keys[index : index + 1])
        return image, torch.from_numpy(vector)

    def __repr__(self) -> str:
        return describe(self, repr(self.source))

    @staticmethod
    def _check(labels: np.ndarray[Any, Any], keys: Sequence[str]) -> None:
        if (odd := ~np.isin(labels, (-1, 0, 1))).any():
            row = int(odd.any(axis=1).argmax())
            raise ShapeError(
                f"a label of {keys[row]!r} is {labels[row][odd[row]][0]:g}: multi-label targets are 0 and 1 (-1: not "
                "labelled); regression targets are not supported"
            )


def _texts(names: Any) -> list[str] | None:
    """The names of a table's columns or rows; None if they are no texts, as by default."""
    found = [] if names is None or callable(names) else list(names)  # a list's `index` is a method
    return found if found and all(isinstance(name, str) for name in found) else None


def _column_names(targets: Any) -> list[str] | None:
    """The names of a table's columns, which are those of classes; None of an array."""
    names = _texts(getattr(targets, "columns", None))
    return None if names is None else check_names(names, "the columns of multi-label targets")


def _check_order(found: Sequence[str] | None, expected: Sequence[str], what: str) -> None:
    """Raises DatasetError if columns or rows have the expected names in another order."""
    if found is None or list(found) == list(expected) or sorted(found) != sorted(expected):
        return
    place = next(place for place, name in enumerate(expected) if found[place] != name)
    raise DatasetError(
        f"the {what} of multi-label targets are in another order: {found[place]!r} came where {expected[place]!r} was "
        f"expected; put them into the order of the {'class_names' if what == 'columns' else 'keys'}"
    )


def _as_array(targets: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Numbers as float32; of torch's tensors those of any dtype and device."""
    if isinstance(targets, Tensor):
        targets = targets.detach().float().cpu()
    try:
        return np.asarray(targets, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise ShapeError(f"multi-label targets are numbers, as many for each image: {first_line(error)}") from error


def num_labels_of(source: ImageSource) -> int | None:
    """Number of classes C of a multi-label source, or of some samples of one; None of any other source."""
    while isinstance(source, SelectedSource):
        source = source.source
    return source.num_labels if isinstance(source, MultiLabelSource) else None


def multi_labels_of(source: ImageSource) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """The vectors [N, C] of a multi-label source or of some of its samples; None if only loading tells them."""
    if isinstance(source, SelectedSource):
        labels = multi_labels_of(source.source)
        return None if labels is None else labels[source.rows]
    return source.labels if isinstance(source, MultiLabelSource) else None


def create(name: str, options: SourceOptions) -> MultiLabelSource | None:
    """The images of a table with several label columns, `a,b,c`, or one with a separator, `tags[|]`; else None.

    Raises:
        DatasetError: a column is missing, or a value is neither 0 nor 1.
    """
    label = options.label_column
    if label is None or options.labels == "none" or Path(name).suffix.lower() not in (".csv", ".tsv", ".parquet"):
        return None
    separated = _SEPARATED.fullmatch(label)
    if separated is None and "," not in label:
        return None
    table = read_table(Path(name))
    if label in table.columns:  # a column of just this name
        return None
    wanted = [separated["column"]] if separated else [part.strip() for part in label.split(",")]
    for column in wanted:
        if column not in table.columns:
            raise DatasetError(f"{name!r} has no column {column!r}; it has {', '.join(table.columns)}")
    source = TableSource(name, image_column=options.image_column, labels="none", skip_missing=options.skip_missing)
    if separated is None:
        rows = [[_to_value(table, column, row) for column in wanted] for row in source.rows]
        return MultiLabelSource(source, rows, class_names=wanted)
    column, separator = separated["column"], separated["separator"]
    tags = [_split(table.columns[column][row], separator, table.place(row)) for row in source.rows]
    names = sorted({tag for each in tags for tag in each})
    if not names:
        raise DatasetError(f"the column {column!r} of {name!r} names no class")
    check_single(names, name, separator)
    places = {tag: place for place, tag in enumerate(names)}
    targets = np.zeros((len(tags), len(names)), dtype=np.float32)
    for row, each in enumerate(tags):
        targets[row, [places[tag] for tag in each]] = 1
    return MultiLabelSource(source, targets, class_names=names)


def _split(value: object, separator: str, place: str) -> list[str]:
    """The names in a field, in the composed form of Unicode; each once."""
    if value is not None and not isinstance(value, str):
        raise DatasetError(
            f"{place} has labels in a {type(value).__name__}: expected a text, separated by {separator!r}"
        )
    names = [unicodedata.normalize("NFC", part.strip()) for part in (value or "").split(separator) if part.strip()]
    if missing := [name for name in names if name.lower() in MISSING and name != "none"]:
        raise DatasetError(f"{place} has the label {missing[0]!r}: leave the field empty where there is none")
    return list(dict.fromkeys(names))


def _to_value(table: Table, column: str, row: int) -> float:
    value = table.columns[column][row]
    text = "" if value is None else str(value).strip().lower()
    if text not in _VALUES:
        raise DatasetError(
            f"{table.place(row)} has {value!r} in the label column {column!r}: expected 0 or 1, or nothing "
            "where it is not labelled"
        )
    return _VALUES[text]
