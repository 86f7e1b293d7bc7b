"""The contract of a source: a length, an (image, target) for each index, and a key for each sample.

A key identifies a sample: it is the path relative to the dataset's root, or the dataset's own id. The seeds of views
and the rows of a cache depend on keys, so a re-ordered folder keeps its views and its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from PIL import Image

from kdkit.errors import ConfigError, nearest

Targets = np.ndarray[Any, np.dtype[np.int64]]
"""Class indices [N]; -1 for a sample without a label."""
LabelRule = Literal["folder", "tar", "none"]
"""Where labels come from, if the data does not show it: the top folder, the name of the tar, or nowhere."""


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
    is_index = found.shape == (len(source),) and found.dtype.kind in "iu"
    return found.astype(np.int64) if is_index else None


@dataclass(frozen=True)
class SourceOptions:
    """How data is read if its content does not decide."""

    image_column: str | None = None
    """Column of the images or of their paths; None for the usual names."""
    label_column: str | None = None
    """Column of the labels, or field of the .json files of WebDataset shards; None for the usual names."""
    labels: LabelRule | None = None
    """Where labels come from; None: as the content shows, or an error."""
    skip_missing: bool = False
    """Whether empty class folders, dangling links and whatever else holds no image that can be listed are left out,
    and listed in `skipped` of the source, instead of refused."""

    def __post_init__(self) -> None:
        known = get_args(LabelRule)
        if self.labels is not None and self.labels not in known:
            raise ConfigError(
                f"labels is {self.labels!r}{nearest(str(self.labels), known)}: expected one of {', '.join(known)}, or "
                "to leave it out"
            )

    def check_no_columns(self, kind: str) -> None:
        """Raises ConfigError if a column is named for a kind of data that has none."""
        names = ("image_column", "label_column")
        if given := " and ".join(name for name in names if getattr(self, name) is not None):
            raise ConfigError(f"{given} came with {kind}, which has no columns: leave it out")

    def check_rule(self, kind: str, *allowed: LabelRule) -> None:
        """Raises ConfigError if labels are requested from where a kind of data has none; "none" is always possible."""
        if self.labels is not None and self.labels not in (*allowed, "none"):
            raise ConfigError(
                f"labels={self.labels} came with {kind}: expected {' or '.join((*allowed, 'none'))}, or to leave it out"
            )


def describe(source: ImageSource, where: str) -> str:
    """The one-line repr of a source: kind, place, number of images and of classes."""
    classes = "no class names" if source.class_names is None else f"{len(source.class_names):,} classes"
    return f"{type(source).__name__}({where}: {len(source):,} images, {classes})"
