"""Class maps: which of a model's classes stands for each class asked for, by index, by name or by synset.

Dimensions: C classes asked for, K classes of the model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.utils import unwrap_model
from torch import Tensor, nn

from kdkit.errors import ClassMismatchError, ConfigError, UnknownNameError, nearest

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

ClassMap = str | Sequence[int] | Sequence[str]
"""The name of an ImageNet family; for each class asked for the index of the model's class; or its name."""

Missing = Literal["error", "least"]
"""About a class that the model does not have: refuse the map, or let the model find it as unlikely as any."""

MISSING = -1
"""In the place of an index."""

_SYNSET = re.compile(r"n\d{8}")
_SHOWN = 5


@functools.cache
def synsets(family: str) -> tuple[str, ...]:
    """WordNet ids of a family's classes in its order, e.g. n01440764 first of imagenet-1k.

    Raises:
        UnknownNameError: timm lists no such family.
    """
    if family not in IMAGENETS:
        known = ", ".join(IMAGENETS)
        raise UnknownNameError(f"timm lists no synsets of {family!r}{nearest(family, IMAGENETS)}; it knows {known}")
    return tuple(ImageNetInfo(family).label_names())


def map_names(wanted: Sequence[str], names: Sequence[str], who: str, missing: Missing = "error") -> tuple[int, ...]:
    """For each wanted class, its index among `names`; -1 where it is not there and may be missing.

    Args:
        wanted: names of the classes asked for [C].
        names: names of the model's classes [K].
        who: how the error calls the model.
        missing: what to do about a class that the model does not have.

    Raises:
        ClassMismatchError: some are not there, or a name stands for two classes; names them.
    """
    index = {name: number for number, name in enumerate(names)}
    absent = [name for name in wanted if name not in index]
    if len(absent) == len(wanted) or (absent and missing == "error"):
        raise ClassMismatchError(
            f"{who} has no class for {len(absent)} of the {len(wanted)} asked for: {_listed(absent)}; leave them out "
            'of class_map, pass missing="least" to let it never choose them, or take another teacher'
        )
    doubtful = {name for name in names if names.count(name) > 1} if len(index) < len(names) else set()
    if ambiguous := [name for name in wanted if name in doubtful]:
        raise ClassMismatchError(f"{who} calls several classes {_listed(ambiguous)}: map them by index")
    return tuple(index.get(name, MISSING) for name in wanted)


def resolve_class_map(
    class_map: ClassMap | None,
    model: nn.Module,
    who: str,
    class_names: Sequence[str] | None = None,
    missing: Missing = "error",
) -> tuple[int, ...] | None:
    """A class map as indices into the model's classes [C]; None stays None.

    Args:
        class_map: an ImageNet family, indices, or names.
        model: whose classes are mapped.
        who: how errors call it.
        class_names: of the model's classes [K]; where they are not given, the synsets of the ImageNet family that has
            as many classes as the model.
        missing: what to do about a class that the model does not have.
    """
    if missing not in get_args(Missing):
        raise ConfigError(f"missing must be one of {', '.join(get_args(Missing))}, got {missing!r}")
    if class_map is None:
        return None
    wanted = synsets(class_map) if isinstance(class_map, str) else tuple(class_map)
    if not any(isinstance(name, str) for name in wanted):
        return tuple(class_index(class_map, model, who, missing).tolist())  # type: ignore[arg-type]
    width = getattr(unwrap_model(model), "num_classes", None)
    if class_names is not None and width is not None and len(class_names) != width:
        raise ClassMismatchError(f"{who} has {width} classes, class_names names {len(class_names)}")
    names = tuple(class_names) if class_names is not None else _family_names(model, who)
    wanted_names = [str(name) for name in wanted]
    return map_names(wanted_names, names, who, missing)


def class_index(class_map: Sequence[int], model: nn.Module, who: str, missing: Missing = "error") -> Tensor:
    """A class map of indices as a checked tensor [C] int64, -1 for a class that may be missing."""
    index = torch.as_tensor(class_map)
    if index.is_floating_point():
        raise ConfigError(f"class_map must hold whole class indices, got {index.dtype}")
    index = index.long()
    width = getattr(unwrap_model(model), "num_classes", None)
    if index.ndim != 1 or index.numel() < 2:
        raise ConfigError(f"class_map must be a list of at least 2 class indices, got shape {list(index.shape)}")
    least, greatest = int(index.min()), int(index.max())
    is_low = least < (0 if missing == "error" else MISSING)
    if is_low or (width is not None and greatest >= width):
        known, odd = "" if width is None else f" to {width - 1}", least if is_low else greatest
        raise ClassMismatchError(f"class_map points at class {odd}, {who} has classes 0{known}")
    return index


def pick_classes(logits: Tensor, index: Tensor) -> Tensor:
    """Logits [B, K] of the classes asked for [B, C]; a missing one gets the least of the row's others."""
    picked = logits[:, index.clamp_min(0)]
    is_missing = index < 0
    least = picked.masked_fill(is_missing, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(is_missing, least, picked)


def are_synsets(names: Sequence[str]) -> bool:
    """Whether all names are WordNet ids."""
    return bool(names) and all(_SYNSET.fullmatch(name) for name in names)


def _family_names(model: nn.Module, who: str) -> tuple[str, ...]:
    family = infer_imagenet_subset(unwrap_model(model))
    if family is None:
        width = getattr(unwrap_model(model), "num_classes", None)
        raise ConfigError(
            f"the names of the classes of {who} are not known: no ImageNet family has {width}; pass class_names=[...]"
        )
    return synsets(family)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
