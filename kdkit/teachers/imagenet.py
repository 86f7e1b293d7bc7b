"""The classes of the ImageNet families: their synsets, and the names that WordNet has for them.

Dimensions: C classes of the data, K classes of the model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from timm.data import ImageNetInfo, infer_imagenet_subset

from kdkit.errors import UnknownNameError, nearest

IMAGENETS = (
    "imagenet-1k",
    "imagenet-12k",
    "imagenet-21k",
    "imagenet-21k-goog",
    "imagenet-21k-miil",
    "imagenet-22k",
    "imagenet-22k-ms",
)
"""The families whose synsets timm lists, as it calls them; imagenet-21k is Google's, with 21,843 classes."""

_SYNSET = re.compile(r"n\d{8}")


@functools.cache
def synsets(family: str) -> tuple[str, ...]:
    """Returns the WordNet ids of a family's classes in its order, e.g. n01440764 first of imagenet-1k.

    Raises:
        UnknownNameError: timm lists no such family.
    """
    if family not in IMAGENETS:
        known = ", ".join(IMAGENETS)
        raise UnknownNameError(f"timm lists no synsets of {family!r}{nearest(family, IMAGENETS)}; it knows {known}")
    return tuple(ImageNetInfo(family).label_names())


def are_synsets(names: Sequence[str]) -> bool:
    """Returns whether all names are WordNet ids."""
    return bool(names) and all(_SYNSET.fullmatch(name) for name in names)


def family_of(num_classes: int | None) -> str | None:
    """Returns the ImageNet family that has so many classes; None if none has."""
    family: str | None = infer_imagenet_subset({"num_classes": num_classes})
    return family


def names_like(names: Sequence[str], num_classes: int | None) -> tuple[str, ...] | None:
    """Returns the names of the K classes of a model by its ImageNet family, in the manner of the data's names.

    They are synsets if the data's names are. They are WordNet's names, all of a class ("tench, Tinca tinca") or its
    first ("tench"), if at least half of the data's names are among them; upper case and underscores do not matter, and
    a class that the data has is spelled as the data spells it. A model is taken to be of the family that has as many
    classes, so its names are not known if the data's are none of ImageNet's.

    Args:
        names: names of the data's classes [C].
        num_classes: classes K of the model.
    """
    if (family := family_of(num_classes)) is None:
        return None
    if are_synsets(names):
        return synsets(family)
    spelled = {_plain(name): name for name in names}
    found = max(_wordnet_names(family), key=lambda known: len(spelled.keys() & set(known)))
    if 2 * len(spelled.keys() & set(found)) < max(1, len(names)):
        return None
    return tuple(spelled.get(name, name) for name in found)


@functools.cache
def _wordnet_names(family: str) -> tuple[tuple[str, ...], ...]:
    """All names of each class [K], and the first name of each class [K]."""
    everything = [_plain(text) for text in ImageNetInfo(family).label_descriptions()]
    return tuple(everything), tuple(text.partition(",")[0] for text in everything)


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())
