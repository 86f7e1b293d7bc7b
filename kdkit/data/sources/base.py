"""The contract of a source: a length, an (image, target) for each index, and a key for each sample.

A key identifies a sample: it is the path relative to the dataset's root, or the dataset's own id. The seeds of views
and the rows of a cache depend on keys, so a re-ordered folder keeps its views and its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from kdkit.errors import ConfigError, DatasetError

Targets = np.ndarray[Any, np.dtype[np.int64]]
"""Class indices [N]; -1 for a sample without a label."""


class ImageSource(Protocol):
    """A map-style dataset of PIL images whose samples have keys.

    A source that knows its class indices without decoding an image has them as `targets`, one int per sample with -1
    for no label; labels are then checked before the first step.
    """

    keys: Sequence[str]
    """A unique key for each sample."""
    class_names: Sequence[str] | None
    """One name per class; None if the source has no names."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """The RGB image and the class index of one sample; the index is -1 for a sample without a label."""
        ...


def targets_of(source: ImageSource) -> Targets | None:
    """The class index of each sample [N], -1 for no label; None if only loading a sample tells its label."""
    found = np.asarray(getattr(source, "targets", None))
    is_index = found.shape == (len(source),) and np.issubdtype(found.dtype, np.integer)
    return found.astype(np.int64) if is_index else None


def class_index(target: Any, key: str) -> int:
    """The class index of a dataset's own label; None means no label, -1.

    Raises:
        DatasetError: the label is a vector or no whole number.
    """
    if target is None:
        return -1
    values = np.asarray(target)
    if values.ndim == 1 and values.size > 1:
        raise DatasetError(
            f"the label of {key!r} is a vector of {values.size} numbers: for several labels per image, open the data "
            "as kdkit.data.MultiLabelSource(DATA)"
        )
    if values.size != 1 or values.dtype.kind not in "iufb" or values.reshape(()) != int(values.reshape(())):
        raise DatasetError(
            f"the label of {key!r} is {str(target)[:40]!r}: expected a class index, since regression targets are not "
            "supported"
        )
    return int(values.reshape(()))


def check_keys(source: ImageSource) -> None:
    """Checks that a source has samples, each with a key of its own.

    Raises:
        DatasetError: the source is empty, or a key is no string or that of two samples.
    """
    if len(source) == 0:
        raise DatasetError("the dataset holds no samples")
    seen: set[object] = set()
    for key in source.keys:  # a custom source may hold anything
        if not isinstance(key, str):
            raise DatasetError(f"a sample has the key {key!r}, a {type(key).__name__}: keys must be strings")
        if key in seen:
            raise DatasetError(f"two samples have the key {key!r}: keys must be unique")
        seen.add(key)


@dataclass(frozen=True)
class Columns:
    """Which columns or fields of a dataset hold the images and the labels; None for the usual names."""

    image: str | None = None
    """Column of the images or of their paths."""
    label: str | None = None
    """Column of the labels."""

    def check_unused(self, kind: str) -> None:
        """Raises ConfigError if a column is named for a kind of data that has none."""
        if given := " and ".join(f"{name}_column" for name in ("image", "label") if getattr(self, name) is not None):
            raise ConfigError(f"{given} came with {kind}, which has no columns: leave it out")


def describe(source: ImageSource, where: str) -> str:
    """The one-line repr of a source: kind, place, number of images and of classes."""
    classes = "no class names" if source.class_names is None else f"{len(source.class_names):,} classes"
    return f"{type(source).__name__}({where}: {len(source):,} images, {classes})"
