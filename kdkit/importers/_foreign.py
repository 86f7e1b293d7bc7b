"""What every importer gives: the labels and records of one image's views, and what they all have in common.

Dimensions: V views, K entries of a label, C classes, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdkit.errors import DatasetError
from kdkit.recipe import ViewRecipe

Array = np.ndarray[Any, Any]
_LEAST_LOG = -30.0
"""Log-probability of a class without any mass: finite for every codec, and 1000 of them together weigh 1e-10."""
_OVERSHOOT = 1e-2
"""By how much the probabilities of a label may exceed 1 together: half precision rounds."""


_EXACT_FLOAT = 1 << 53
"""Up to here a float64 holds every whole number."""
MAX_CLASSES = 1 << 17
"""Greatest number of classes of a label; a thousand rows of dense labels are made at a time."""


@dataclass(frozen=True, eq=False)
class ForeignViews:
    """The views of one image as another project stores them."""

    values: Array
    """Of a sparse label the probabilities float32 [V, K] of its classes; of a dense one float32 logits [V, C]."""
    ids: Array | None = None
    """Of a sparse label its classes, int64 [V, K]; None for a dense one."""
    records: Array | None = None
    """Recorded parameters of the views, a structured array [V]; None if the recipe draws them."""


class ForeignCache(Protocol):
    """Another project's cache, matched with a dataset's keys. Pickles, so that workers can read it."""

    name: str
    """Format and place, for the cache's record of its teacher."""
    recipe: ViewRecipe
    """What the views look like, and how many there are."""
    num_classes: int
    """Classes C of the labels."""
    sorts_classes: bool
    """Whether its classes are numbered in the sorted order of class folders, as by torchvision; kdkit orders numbers in
    names by their value."""
    holds_logits: bool
    """Whether its labels are a model's logits, which alone tell of several labels per image."""
    num_entries: int | None
    """Entries K of a label; None for dense labels."""

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of its classes [C], which decide over `sorts_classes` where they are known."""
        ...

    def read(self, row: int) -> ForeignViews:
        """The views of dataset row `row`.

        Raises:
            DatasetError: they are missing, damaged, or another image's; names file and image.
        """
        ...


def whole_numbers(values: Any, what: str, least: int = -_EXACT_FLOAT, greatest: int = _EXACT_FLOAT) -> Array:
    """The values as int64, of an array or of (lists of) numbers; nothing is cut, rounded or read from a text.

    Raises:
        DatasetError: they are not whole numbers from `least` to `greatest`; `what` names them.
    """
    try:
        numbers = np.asarray(values)
        is_whole = numbers.dtype.kind in "biu" or (
            numbers.dtype.kind == "f" and bool((numbers == numbers.round()).all())
        )
    except ValueError:  # lists of different lengths
        is_whole = False
    if not is_whole or (numbers.size and not least <= float(numbers.min()) <= float(numbers.max()) <= greatest):
        raise DatasetError(f"{what} must be whole numbers from {least:,} to {greatest:,}, got {str(values)[:80]}")
    return numbers.astype(np.int64)


def check_labels(ids: Array, probs: Array, num_classes: int, origin: str) -> None:
    """Checks sparse labels [V, K]: classes below C, each once, and probabilities that sum to 1 at most.

    Raises:
        DatasetError: a label is not like that; names `origin` and the view.
    """
    wrong = (ids < 0) | (ids >= num_classes)
    if wrong.any():
        view = int(np.nonzero(wrong.any(axis=1))[0][0])
        raise DatasetError(
            f"{origin}, view {view}: class {ids[wrong][0]}, expected 0 to {num_classes - 1}: "
            "is it another number of classes?"
        )
    ordered = np.sort(ids, axis=1)
    faults = {
        "names a class twice": (ordered[:, 1:] == ordered[:, :-1]).any(axis=1),
        "has a probability outside 0 to 1": ~((probs >= 0) & (probs <= 1 + _OVERSHOOT)).all(axis=1),
        f"has probabilities that sum to more than {1 + _OVERSHOOT}": probs.sum(axis=1) > 1 + _OVERSHOOT,
    }
    for fault, views in faults.items():
        if views.any():
            raise DatasetError(f"{origin}, view {int(np.nonzero(views)[0][0])}: the label {fault}")


def to_logits(values: Array, ids: Array | None, num_classes: int) -> Tensor:
    """Dense logits float32 [R, C]; a sparse label's rest of 1 is spread evenly over its other classes."""
    if ids is None:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    probs = torch.from_numpy(values).double()
    others = max(1, num_classes - ids.shape[1])
    rest = ((1 - probs.sum(dim=1, keepdim=True)) / others).log().nan_to_num(nan=_LEAST_LOG)  # NaN: more than 1 in all
    logits: Tensor = rest.clamp_min(_LEAST_LOG).float().expand(-1, num_classes).contiguous()
    logits.scatter_(1, torch.from_numpy(ids), probs.log().clamp_min(_LEAST_LOG).float())
    return logits


def torchvision_order(keys: Sequence[str]) -> list[int]:
    """Places of the keys CLASS/.../FILE in the order of torchvision's ImageFolder: class, folder, file name."""

    def parts(place: int) -> tuple[str, str, str]:
        folder, _, name = keys[place].rpartition("/")
        return keys[place].partition("/")[0], folder, name

    return sorted(range(len(keys)), key=parts)


def name_some(names: Sequence[str]) -> str:
    """The first three of some names and how many more there are, for an error."""
    names = list(dict.fromkeys(names))
    listed = ", ".join(repr(name) for name in names[:3])
    return f"{listed} and {len(names) - 3} more" if len(names) > 3 else listed
