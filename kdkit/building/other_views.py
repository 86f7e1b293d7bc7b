"""What a teacher may have seen instead of a cache's views: other crops, readings of boxes, and normalisations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.config.normalization import NAMES
from kdkit.data import ReplayedDataset
from kdkit.data.views.record import RecordedSteps
from kdkit.data.views.recorded import RecordStore
from kdkit.recipe import Interpolation, ViewRecipe
from kdkit.types import Normalization

Array = np.ndarray[Any, Any]
NORMALIZATIONS = {
    "ImageNet's mean and std": Normalization(*NAMES["imagenet"]),
    "mean 0.5, std 0.5": Normalization(*NAMES["inception"]),
    "CLIP's mean and std": Normalization(*NAMES["clip"]),
    "no normalisation, pixels 0 to 1": Normalization(*NAMES["none"]),
    "no normalisation, pixels 0 to 255": Normalization((0.0,) * 3, (1 / 255,) * 3),
}
"""What a model's input may have been normalised by."""
_CROP_PCTS = (1.0, 0.95, 0.9, 0.875, 0.8)
_SEEDS = (0, 1, 42)
_SCALES = ((0.05, 1.0), (0.08, 1.0), (0.25, 1.0), (0.35, 1.0))
_BOXES = {
    "(left, top, width, height)": lambda a, b, c, d: (b, a, d, c),
    "(top, left, bottom, right)": lambda a, b, c, d: (a, b, c - a, d - b),
    "(left, top, right, bottom)": lambda a, b, c, d: (b, a, d - b, c - a),
}


def other_views(dataset: ReplayedDataset, records: RecordStore | None) -> Iterator[tuple[str, ReplayedDataset]]:
    """Views that the teacher may have seen instead, each with its description.

    Args:
        dataset: the images in the cache's views.
        records: the cache, if its views are recorded.
    """
    recipe = dataset.recipe
    if recipe.transform is not None:
        return
    for text, other in _recipes(recipe):
        yield text, _opened(dataset, other, records if other.recorded else None)
    whole = ViewRecipe(size=recipe.teacher_size or recipe.size, interpolation="bilinear", recorded="fractions")
    yield "the whole image, resized to a square", _opened(dataset, whole, _WholeImages(len(dataset)))
    if recipe.recorded is not None and RecordedSteps.parse(recipe.recorded).crop == "crop" and records is not None:
        for order, read in _BOXES.items():
            store = _OtherBoxes(records, RecordedSteps.parse(recipe.recorded), read)
            yield f"boxes that are {order}", _opened(dataset, recipe, store)


def as_model_sees(wanted: Normalization, own: Normalization, incoming: Normalization) -> Normalization:
    """The normalisation of a loader after which a teacher's model sees its pixels normalised by `wanted`.

    Args:
        wanted: of what the model shall see.
        own: that to which the teacher converts.
        incoming: that from which it converts.
    """
    sides = list(zip(wanted.mean, wanted.std, own.mean, own.std, incoming.mean, incoming.std, strict=True))
    mean = tuple(m - (m_own - m_in) * s / s_own for m, s, m_own, s_own, m_in, _ in sides)
    return Normalization(mean, tuple(s * s_in / s_own for _, s, _, s_own, _, s_in in sides))


def _recipes(recipe: ViewRecipe) -> Iterator[tuple[str, ViewRecipe]]:
    """Recipes that differ in the crop."""
    other: Interpolation = "bilinear" if recipe.interpolation == "bicubic" else "bicubic"
    yield f"{other} interpolation", replace(recipe, interpolation=other)
    if recipe.augment:
        size = recipe.teacher_size or recipe.size
        for pct in (ViewRecipe.crop_pct, 1.0):
            yield f"the evaluation view, crop_pct {pct:g}", ViewRecipe.evaluation(size, crop_pct=pct)
        if recipe.recorded is None:
            yield from ((f"seed {seed}", replace(recipe, seed=seed)) for seed in _SEEDS if seed != recipe.seed)
            yield from ((f"scale {scale}", replace(recipe, scale=scale)) for scale in _SCALES if scale != recipe.scale)
        return
    for pct in _CROP_PCTS:
        for interpolation in (recipe.interpolation, other):
            changed = replace(recipe, crop_pct=pct, interpolation=interpolation)
            if pct != recipe.crop_pct:
                yield f"crop_pct {pct:g}, {interpolation} interpolation", changed


def _opened(dataset: ReplayedDataset, recipe: ViewRecipe, records: RecordStore | None) -> ReplayedDataset:
    """The same images in other views, as a teacher sees them."""
    return ReplayedDataset(dataset.source, recipe, num_classes=dataset.num_classes, records=records).for_teacher()


class _WholeImages:
    """Records of crops that are the whole image."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def match_keys(self, keys: Sequence[str]) -> Array:
        return np.arange(len(keys))

    def read_records(self, rows: Array, view: int) -> Tensor:
        records = np.zeros(len(rows), RecordedSteps.parse("fractions").dtype)
        records["own"]["crop"] = (0, 0, 1, 1)
        return torch.from_numpy(records.view(np.uint8).reshape(len(rows), -1))


class _OtherBoxes:
    """The records of a cache with the four numbers of each box read otherwise."""

    def __init__(self, records: RecordStore, steps: RecordedSteps, read: Any) -> None:
        self._records, self._dtype, self._read = records, steps.dtype, read

    def match_keys(self, keys: Sequence[str]) -> Array:
        return self._records.match_keys(keys)

    def read_records(self, rows: Array, view: int) -> Tensor:
        payload = self._records.read_records(rows, view).numpy().copy()
        records = payload.view(self._dtype)[:, 0]
        box = records["own"]["crop"].astype(np.int64)
        records["own"]["crop"] = np.stack(self._read(*box.T), axis=-1).clip(0, (1 << 16) - 1)
        return torch.from_numpy(payload)
