"""One sample as a worker process of a loader returns it, and the mark of one that could not be loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from kdkit.errors import DatasetError


class Sample(NamedTuple):
    """One view of one sample, as a worker process of a loader returns it."""

    image: Tensor
    """Pixels, uint8 [3, H, W]; mixed with those of the partner if the recipe mixes views."""
    target: int | Tensor
    """Class index, -1 if the sample has no label; of multi-label data a vector float32 [C] of 0 and 1."""
    row: int
    """Index of the sample in the dataset."""
    view: int
    """Number of the view."""
    partner_target: int | Tensor | None = None
    """Label of the partner that the sample is mixed with, or its own without a partner; None without mixing."""
    share: float = 1.0
    """Share of `target` in the mixed label; 1 if nothing is mixed."""
    teacher_image: Tensor | None = None
    """The same view at the teacher's size, uint8 [3, T, T], from a dataset `with_teacher_view()`; else None."""


class Unreadable(NamedTuple):
    """Stands in a batch for a sample that could not be loaded, in a dataset that skips such samples."""

    row: int
    """Index of the sample in the dataset."""
    reason: str
    """What went wrong; names the sample."""


def check_indices(indices: Sequence[Any], num_rows: int, num_views: int) -> None:
    """Checks the indices of a batch, each (row, view).

    Raises:
        DatasetError: an index names no view; it is not an unreadable image, so it is never skipped.
    """
    for index in indices:
        if not (isinstance(index, (tuple, list)) and len(index) == 2):
            raise DatasetError(f"index {index!r} names no view: dataset[row, view], or in a loader an EpochSampler")
        row, view = index
        if not 0 <= row < num_rows:  # a negative one would be another sample's partner
            raise DatasetError(f"row {row} is out of range: the dataset has rows 0 to {num_rows - 1}")
        if not 0 <= view < num_views:
            raise DatasetError(f"view {view} is out of range: the recipe has views 0 to {num_views - 1}")
