"""A datasets.Dataset as pairs of image and class index."""

from __future__ import annotations

from typing import Any

from kdkit.data.sources.base import SourceOptions
from kdkit.data.sources.columns import arrow_values, choose_column, choose_label
from kdkit.data.sources.labels import index_labels
from kdkit.errors import DatasetError

_ARROW_ROWS = 10_000


class HuggingFaceTable:
    """A datasets.Dataset as pairs of an undecoded image and a class index; class names are those of its features.

    Images are not decoded by `datasets`, which would apply the EXIF orientation. Without labels the class index
    is -1.

    Args:
        dataset: the datasets.Dataset.
        options: columns of images and labels, `image` and `label` by default; labels may be left out.

    Raises:
        DatasetError: it has its own transform, a column is missing, or a label is unusable.
    """

    def __init__(self, dataset: Any, options: SourceOptions) -> None:
        if dataset.format["type"] == "custom":
            raise DatasetError("the Hugging Face dataset has a transform: take it out, kdkit makes the views")
        dataset, names = dataset.with_format(None), list(dataset.column_names)
        image = choose_column(options.image_column, ("image",), names, "image_column", "the Hugging Face dataset")
        label = choose_label(options, ("label",), names, image, "the Hugging Face dataset")
        feature = dataset.features[image]
        if getattr(feature, "decode", False):
            dataset = dataset.cast_column(image, type(feature)(decode=False))
        self.image_column = image
        self.paths = arrow_column(dataset, image, "path")
        self._images = dataset.select_columns([image])
        self.classes: list[str] | None = None
        self.targets = [-1] * len(dataset)
        if label is not None:
            values = arrow_column(dataset, label)
            self.classes = list(getattr(dataset.features[label], "names", None) or ()) or None
            keys = [f"row {row}" for row in range(len(values))]
            self.targets, found = index_labels(values, keys, f"the column {label!r}")
            self.classes = self.classes or found

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._images[index][self.image_column], self.targets[index]


def is_hugging_face(dataset: Any) -> bool:
    """Whether this is a datasets.Dataset; the package is not imported for it."""
    return all(hasattr(dataset, name) for name in ("features", "cast_column", "column_names"))


def arrow_column(dataset: Any, column: str, field: str | None = None) -> list[Any]:
    """The values of one column, or of one field of it, read without the other columns; empty if it has no fields."""
    table = dataset.select_columns([column]).with_format("arrow")
    values: list[Any] = []
    for start in range(0, len(table), _ARROW_ROWS):
        part = table[start : start + _ARROW_ROWS].column(column)
        part = part.combine_chunks()
        if field is not None and not hasattr(part, "field"):
            return []
        values += arrow_values(part if field is None else part.field(field))
    return values
