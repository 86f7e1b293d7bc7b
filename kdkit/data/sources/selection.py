"""Some samples of another source, in an order of their own, or all without their labels."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from kdkit.data.sources.base import ImageSource, describe, targets_of


class SelectedSource:
    """Some samples of another source, in any order; keys, labels and class names stay the source's.

    Args:
        source: the source.
        rows: index in the source of each sample.
    """

    def __init__(self, source: ImageSource, rows: Sequence[int]) -> None:
        self.source, self.rows = source, list(rows)
        self.keys: Sequence[str] = [source.keys[row] for row in self.rows]
        self.class_names: Sequence[str] | None = source.class_names
        known = targets_of(source)
        self.targets: Sequence[int] | None = None if known is None else known[self.rows].tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.source[self.rows[index]]

    def __repr__(self) -> str:
        return describe(self, repr(self.source))


class Unlabelled:
    """The images of a source without their labels: every target is -1.

    Args:
        source: where the images come from.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.keys: Sequence[str] = source.keys
        self.class_names: Sequence[str] | None = None
        self.targets: Sequence[int] = [-1] * len(source.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.source[index][0], -1
