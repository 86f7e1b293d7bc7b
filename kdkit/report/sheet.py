"""The contact sheet: replayed views with the teacher's likeliest classes and the label.

Dimensions: B views of a sheet's row, C classes, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.cache import CachedTeacher
from kdkit.data import ReplayedDataset, Sample
from kdkit.data.sample import Unreadable
from kdkit.report.predictions import read_probabilities

TOP = 3
"""Classes shown of each prediction."""

Array = np.ndarray[Any, Any]
Predict = Callable[[Sequence[Sample]], Tensor]
"""A student's probabilities [B, C] of some samples."""


@dataclass(frozen=True)
class Guess:
    """One of the likeliest classes of a prediction."""

    name: str
    """Name of the class."""
    probability: float
    """Its probability."""
    is_label: bool
    """Whether the sample has this label."""


@dataclass(frozen=True)
class Cell:
    """One view of one image."""

    view: int
    """Number of the view."""
    image: Array
    """Pixels as the teacher saw them, uint8 [H, W, 3]."""
    label: str
    """Name of the label, or of all; with their shares where two images are mixed; "no label" if there is none."""
    teacher: tuple[Guess, ...]
    """The teacher's likeliest classes, the likeliest first."""
    student: tuple[Guess, ...] = ()
    """The student's; empty if no student is shown."""


@dataclass(frozen=True)
class SheetRow:
    """Some views of one image."""

    row: int
    """Row of the image in the dataset."""
    key: str
    """Its key."""
    note: str
    """Why it is shown, e.g. its entropy; may be empty."""
    cells: tuple[Cell, ...]
    """One for each view."""
    problem: str = ""
    """Why there is no cell, where the image cannot be read."""

    @property
    def label(self) -> str | None:
        """The label that all its views share; None if they differ, as where two images are mixed."""
        labels = {cell.label for cell in self.cells}
        return labels.pop() if len(labels) == 1 else None


@dataclass(frozen=True)
class Sheet:
    """A contact sheet."""

    title: str
    """What is shown."""
    rows: tuple[SheetRow, ...]
    """One for each image."""


def make_sheet(
    title: str,
    cache: CachedTeacher,
    dataset: ReplayedDataset,
    rows: Sequence[int],
    views: Sequence[int],
    *,
    notes: Sequence[str] = (),
    predict: Predict | None = None,
) -> Sheet:
    """Replays `views` of the dataset's `rows`, beside what the cache holds about them.

    Args:
        title: what is shown.
        cache: matched with `dataset`.
        dataset: the images, seen through the cache's recipe.
        rows: rows of the dataset.
        views: numbers of the views.
        notes: a note for each row.
        predict: the student, if one is shown.

    Raises:
        CacheStreamError: the cache holds no logits.
    """
    notes = notes or [""] * len(rows)
    return Sheet(
        title,
        tuple(_make_row(cache, dataset, row, views, note, predict) for row, note in zip(rows, notes, strict=True)),
    )


def names_of(cache: CachedTeacher, dataset: ReplayedDataset) -> Sequence[str] | None:
    """Names of the classes that teacher and student predict; None if they are not known.

    They are the data's, else the cache's, which has its teacher's where the data has no labels. Those of an import may
    be of other classes.
    """
    return (dataset.class_names or cache.class_names) if cache.names_classes else None


def _make_row(
    cache: CachedTeacher,
    dataset: ReplayedDataset,
    row: int,
    views: Sequence[int],
    note: str,
    predict: Predict | None,
) -> SheetRow:
    indices = [(row, view) for view in views]
    seen = dataset.skipping_unreadable().with_teacher_view().__getitems__(indices)
    samples = [sample for sample in seen if isinstance(sample, Sample)]
    problem = next((sample.reason for sample in seen if isinstance(sample, Unreadable)), "")
    students = predict(samples) if predict is not None and samples else None
    cached, names = cache.rows_of(torch.tensor([row])), names_of(cache, dataset)
    cells = [
        _make_cell(
            sample,
            dataset,
            names,
            read_probabilities(cache, cached, sample.view)[0],
            None if students is None else students[index],
        )
        for index, sample in enumerate(samples)
    ]
    return SheetRow(row, dataset.keys[row], note, tuple(cells), problem)


def _make_cell(
    sample: Sample, dataset: ReplayedDataset, names: Sequence[str] | None, teacher: Tensor, student: Tensor | None
) -> Cell:
    pixels = sample.image if sample.teacher_image is None else sample.teacher_image
    shares = _shares_of(sample)
    shown = shares if names is not None or dataset.class_names is None else {}  # else the label is of other classes
    return Cell(
        view=sample.view,
        image=pixels.permute(1, 2, 0).numpy(),
        label=_describe_label(shares, dataset.class_names),
        teacher=_top_guesses(teacher, names, shown),
        student=() if student is None else _top_guesses(student, names, shown),
    )


def _shares_of(sample: Sample) -> dict[int, float]:
    """The share of each class in the label: 1 for the classes of an image that is not mixed."""
    shares: dict[int, float] = {}
    for target, share in ((sample.target, sample.share), (sample.partner_target, 1 - sample.share)):
        if target is None or share <= 0:
            continue
        several = target.eq(1).nonzero().flatten().tolist() if isinstance(target, Tensor) and target.ndim else None
        for index in [int(target)] if several is None else several:
            shares[index] = shares.get(index, 0.0) + share
    return {index: share for index, share in shares.items() if index >= 0}


def _top_guesses(probabilities: Tensor, names: Sequence[str] | None, labels: dict[int, float]) -> tuple[Guess, ...]:
    top = probabilities.topk(min(TOP, len(probabilities)))
    return tuple(
        Guess(_name(index, names), value, index in labels)
        for value, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    )


def _describe_label(shares: dict[int, float], names: Sequence[str] | None) -> str:
    if len(shares) == 1 or all(share == 1 for share in shares.values()):
        return " + ".join(_name(target, names) for target in shares) or "no label"
    return " + ".join(f"{share:.0%} {_name(target, names)}" for target, share in shares.items())


def _name(index: int, names: Sequence[str] | None) -> str:
    return names[index] if names is not None and index < len(names) else f"class {index}"
