"""scikit-learn's digits, split for the demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdkit.data import ArraySource
from kdkit.errors import MissingDependencyError
from kdkit.runtime.install import install_command

NUM_CLASSES = 10
LABELS_PER_CLASS = 3
"""Number of labels of each class that students get."""


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits, a quarter held out, and the rows whose label students get."""

    images: np.ndarray[Any, np.dtype[np.uint8]]
    """Pixels, uint8 [N, 8, 8]."""
    labels: np.ndarray[Any, np.dtype[np.int64]]
    """Class indices [N]."""
    train: Sequence[int]
    """Rows of the training images."""
    held_out: Sequence[int]
    """Rows of the held-out quarter."""
    labelled: Sequence[int]
    """Rows, among `train`, whose label the students get."""

    def source(self, rows: Sequence[int], *, visible: Sequence[int] | None = None, copies: int = 1) -> ArraySource:
        """The images of `rows`; only the rows in `visible` keep their label. Each copy has its own key and views."""
        repeated = list(rows) * copies
        kept = set(rows if visible is None else visible)
        return ArraySource(
            self.images[repeated],
            [int(self.labels[row]) if row in kept else -1 for row in repeated],
            keys=[f"digit-{row:04d}" + (f"-{i // len(rows)}" if copies > 1 else "") for i, row in enumerate(repeated)],
            class_names=[str(digit) for digit in range(NUM_CLASSES)],
        )


def load_digits(labels_per_class: int = LABELS_PER_CLASS) -> Digits:
    """Loads the digits; the split is always the same.

    Args:
        labels_per_class: number of training digits of each class whose labels are given.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingDependencyError(f"the demo needs scikit-learn: {install_command('demo')}") from error
    data = datasets.load_digits()
    labels = data.target.astype(np.int64)
    rows = np.arange(len(labels))
    train_rows, held_out = train_test_split(rows, test_size=0.25, stratify=labels, random_state=0)
    labelled = [
        row for digit in range(NUM_CLASSES) for row in train_rows[labels[train_rows] == digit][:labels_per_class]
    ]
    images = (data.images * (255 / 16)).round().astype(np.uint8)
    return Digits(images, labels, train_rows.tolist(), held_out.tolist(), [int(row) for row in labelled])
