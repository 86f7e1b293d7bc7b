"""A source whose keys and labels are checked: at once as far as they are known, else when an image is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from kdkit.data.sources.base import ImageSource, targets_of
from kdkit.data.sources.class_order import check_texts
from kdkit.data.sources.labels import check_range, class_index
from kdkit.data.sources.multi_label import num_labels_of
from kdkit.data.sources.repeatable import check_repeatable
from kdkit.errors import DatasetError, LabelError

_KINDS = (
    "array",
    "folder",
    "joined",
    "labels",
    "mapped",
    "multi_label",
    "selection",
    "table",
    "tar",
    "webdataset",
    "zip",
)
_REPEATABLE = tuple(f"kdkit.data.sources.{name}" for name in _KINDS)
"""Modules whose sources give the same image each time, or have been checked when they were made."""


class CheckedSource:
    """Loads the images of a source with their class indices.

    Args:
        source: where the images come from.
        num_classes: number of classes; None if it is unknown.

    Raises:
        LabelError: a label that is known before its image is loaded is not a class index, or there is no such class.
    """

    def __init__(self, source: ImageSource, num_classes: int | None) -> None:
        self.source = source
        self.num_classes = num_classes
        self._is_multi_label = num_labels_of(source) is not None
        self._targets = targets_of(source)
        if self._targets is not None:
            check_range(self._targets, num_classes, source.keys)

    def __call__(self, row: int) -> tuple[Image.Image, int]:
        """The image of a row, and its class index; -1 for no label. Of multi-label data its vector [C].

        Raises:
            LabelError: the label is not a class index, there is no such class, or the source lists another label.
        """
        image, label = self.source[row]
        if self._is_multi_label:
            return image, label
        key = self.source.keys[row]
        found = class_index(label, key, type(self.source).__name__, self.num_classes)
        if self._targets is not None and found != self._targets[row]:
            raise LabelError(
                f"the label of {key!r} in {type(self.source).__name__} is {found}, and {int(self._targets[row])} among "
                "its targets: give it targets that are those of its images"
            )
        return image, found


def check_source(source: ImageSource) -> None:
    """Checks that a source has samples, with unique keys, and gives the same image each time.

    Raises:
        DatasetError: it does not.
    """
    if len(source) == 0:
        raise DatasetError("the dataset holds no samples")
    keys: Sequence[object] = source.keys  # a custom source may hold anything
    for other in (key for key in keys if not isinstance(key, str)):
        raise DatasetError(f"a sample has the key {other!r}, a {type(other).__name__}: keys must be strings")
    if source.class_names is not None:
        check_texts(source.class_names, "class_names")
    if (rows := first_repeated(source.keys)) is not None:
        raise DatasetError(
            f"two samples have the key {source.keys[rows[0]]!r}, numbers {rows[0]:,} and {rows[1]:,}: keys must be "
            "unique"
        )
    if not any(kind.__module__ in _REPEATABLE for kind in type(source).__mro__):
        check_repeatable(source.__getitem__, len(source), type(source).__name__)


def first_repeated(keys: Sequence[str]) -> tuple[int, int] | None:
    """The rows of the first key that is repeated; None if each stands once."""
    if len(set(keys)) == len(keys):
        return None
    rows: dict[str, int] = {}
    return next((rows[key], row) for row, key in enumerate(keys) if rows.setdefault(key, row) != row)
