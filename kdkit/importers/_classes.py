"""Which classes of a foreign cache are those of a dataset, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from kdkit.bounds import shown
from kdkit.data.sources.class_order import index_classes
from kdkit.errors import ClassMismatchError
from kdkit.importers._foreign import ForeignCache
from kdkit.teachers.class_map import composed

_IMAGENET_CLASSES = 1000


class Classes(NamedTuple):
    """The classes of an imported cache."""

    names: Sequence[str] | None
    """Of the data, or of data without labels those that the foreign cache names, in natural order."""
    columns: Tensor | None
    """The foreign class of each, int64 [C]; None for all foreign classes as they are."""


def match_classes(foreign: ForeignCache, names: Sequence[str] | None) -> Classes:
    """The classes that a cache of `foreign` has.

    Args:
        foreign: what is imported.
        names: the data's class folders, in the order of its labels; None if it has none.

    Raises:
        ClassMismatchError: a folder is none of the named classes.
    """
    if names is None and foreign.class_names is not None:
        names = index_classes(foreign.class_names, foreign.name)[1]
    chosen = choose_classes(
        names, foreign.num_classes, sorts_classes=foreign.sorts_classes, foreign_names=foreign.class_names
    )
    return Classes(names, None if chosen is None else torch.tensor(chosen))


def choose_classes(
    names: Sequence[str] | None, num_classes: int, *, sorts_classes: bool, foreign_names: Sequence[str] | None = None
) -> list[int] | None:
    """The foreign class of each of the data's class folders.

    Args:
        names: the data's class folders, in the order of its labels; None if it has none.
        num_classes: classes of the foreign labels.
        sorts_classes: whether foreign classes are numbered in the sorted order of the folders, rather than the data's.
        foreign_names: the names of the foreign classes [num_classes], if they have any.

    Returns:
        Class indices, one per name: those of the same names; without names, if the folders are WNIDs and a part of
        ImageNet-1k, and if there are as many folders as classes, in another order. None to keep all classes as they
        are.

    Raises:
        ClassMismatchError: a folder is none of the named classes, or there is one folder alone.
    """
    if names is not None and foreign_names is not None:
        places = {name: place for place, name in enumerate(composed(foreign_names))}
        if lacking := [name for name in names if name not in places]:
            raise ClassMismatchError(
                f"the labels are of the classes {shown(list(foreign_names))}, the data also has {shown(lacking[0])}: "
                "give the images of those classes, each in a folder of its class"
            )
        if len(names) < 2:
            raise ClassMismatchError(f"the data has the class {shown(names[0])} alone: expected at least 2 classes")
        order = [places[name] for name in names]
        return order if order != list(range(num_classes)) else None
    if names is not None and len(names) == num_classes:
        places = {name: place for place, name in enumerate(sorted(names))}
        order = [places[name] for name in names]
        return order if sorts_classes and order != list(range(num_classes)) else None
    if names is None or num_classes != _IMAGENET_CLASSES:
        return None
    indices = [_imagenet_wnids().get(name) for name in names]
    known = [index for index in indices if index is not None]
    return known if len(known) == len(names) > 1 else None


def check_same_count(names: Sequence[str] | None, num_classes: int, origin: str) -> None:
    """Checks that arrays have as many classes as the data names.

    Raises:
        ClassMismatchError: they have not, nor are the data's classes a part of ImageNet's; names both counts.
    """
    if names is None or len(names) == num_classes or choose_classes(names, num_classes, sorts_classes=False):
        return
    raise ClassMismatchError(
        f"{origin} has {num_classes} classes, the data {len(names)} class folders: give the images of those classes, "
        "each in a folder of its class, or a folder of images only"
    )


@cache
def _imagenet_wnids() -> dict[str, int]:
    """WNID -> its index among the 1,000 classes of ImageNet."""
    return {wnid: index for index, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
