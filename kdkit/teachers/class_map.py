"""Class maps: the class of a model for each class of the data, by index, by name or by synset.

Dimensions: C classes of the data, K classes of the model.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from kdkit.errors import ClassMismatchError, ConfigError
from kdkit.teachers.imagenet import family_of, names_like, synsets

ClassMap = str | Sequence[int] | Sequence[str]
"""The name of an ImageNet family; or for each class of the data the index, or the name, of the model's class."""

MissingClasses = Literal["error", "min_logit"]
"""For a class that the model does not have: refuse the map, or give the class the row's smallest logit."""

MISSING = -1
"""Takes the place of an index in a class map, for a class that the model does not have."""

_SHOWN = 5


def map_names(
    wanted: Sequence[str], names: Sequence[str], subject: str, missing_classes: MissingClasses = "error"
) -> tuple[int, ...]:
    """Returns for each class of the data its index among `names`; -1 if it is absent and may be missing.

    Args:
        wanted: names of the data's classes [C].
        names: names of the model's classes [K].
        subject: the model's name in errors.
        missing_classes: "error" or "min_logit", for a class that the model does not have.

    Raises:
        ClassMismatchError: some are absent, or two classes of the model have one name; the error names them.
    """
    wanted, names = composed(wanted), composed(names)
    index = {name: number for number, name in enumerate(names)}
    absent = [name for name in wanted if name not in index]
    if len(absent) == len(wanted) or (absent and missing_classes == "error"):
        raise ClassMismatchError(
            f"{subject} has no class for {len(absent)} of the {len(wanted)} classes of the map: {_listed(absent)}; "
            'leave them out of class_map, pass missing_classes="min_logit" to never predict them, '
            "or take another teacher"
        )
    counts = Counter(names)
    if ambiguous := [name for name in wanted if counts[name] > 1]:
        raise ClassMismatchError(f"{subject} calls several classes {_listed(ambiguous)}: map them by index")
    return tuple(index.get(name, MISSING) for name in wanted)


def composed(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names in Unicode's composed form (NFC), in which those of the data are, so that they compare."""
    return tuple(unicodedata.normalize("NFC", name) for name in names)


def resolve_class_map(
    class_map: ClassMap | None,
    model: nn.Module,
    subject: str,
    class_names: Sequence[str] | None = None,
    missing_classes: MissingClasses = "error",
) -> tuple[int, ...] | None:
    """Returns a class map as indices into the model's classes [C]; None stays None.

    Args:
        class_map: an ImageNet family, indices, or names.
        model: the model that has the classes.
        subject: the model's name in errors.
        class_names: of the model's classes [K]; if they are not given, the synsets or the WordNet names of the
            ImageNet family that has as many classes as the model.
        missing_classes: "error" or "min_logit", for a class that the model does not have.

    Raises:
        ConfigError: an argument has none of the stated forms, or the names of the model's classes are not known.
        ClassMismatchError: the model does not have a class.
    """
    if missing_classes not in get_args(MissingClasses):
        raise ConfigError(
            f"missing_classes must be one of {', '.join(get_args(MissingClasses))}, got {missing_classes!r}"
        )
    if class_map is None:
        return None
    wanted = synsets(class_map) if isinstance(class_map, str) else tuple(class_map)
    if not any(isinstance(name, str) for name in wanted):
        return tuple(class_index(class_map, model, subject, missing_classes).tolist())  # type: ignore[arg-type]
    wanted_names = [str(name) for name in wanted]
    names = tuple(class_names) if class_names is not None else _family_names(model, wanted_names, subject)
    return map_names(wanted_names, names, subject, missing_classes)


def class_index(
    class_map: Sequence[int], model: nn.Module, subject: str, missing_classes: MissingClasses = "error"
) -> Tensor:
    """Returns a class map of indices as a checked tensor [C] int64, with -1 for a class that may be missing.

    Raises:
        ConfigError: it is not a list of at least two whole numbers.
        ClassMismatchError: the model does not have a class.
    """
    index = torch.as_tensor(class_map)
    if index.is_floating_point():
        raise ConfigError(f"class_map must hold whole class indices, got {index.dtype}")
    index = index.long()
    width = getattr(unwrap_model(model), "num_classes", None)
    if index.ndim != 1 or index.numel() < 2:
        raise ConfigError(f"class_map must be a list of at least 2 class indices, got shape {list(index.shape)}")
    low, high = int(index.min()), int(index.max())
    is_low = low < (0 if missing_classes == "error" else MISSING)
    if is_low or (width is not None and high >= width):
        known, odd = "" if width is None else f" to {width - 1}", low if is_low else high
        raise ClassMismatchError(f"class_map points at class {odd}, {subject} has classes 0{known}")
    return index


def pick_classes(logits: Tensor, index: Tensor) -> Tensor:
    """Returns logits [B, C] of the data's classes from logits [B, K]; a missing class gets the row's smallest logit."""
    picked = logits[:, index.clamp_min(0)]
    is_missing = index < 0
    smallest = picked.masked_fill(is_missing, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(is_missing, smallest, picked)


def _family_names(model: nn.Module, wanted: Sequence[str], subject: str) -> tuple[str, ...]:
    """The names of the model's classes by its ImageNet family, in the manner of the wanted ones."""
    width = getattr(unwrap_model(model), "num_classes", None)
    if (family := family_of(width)) is None:
        raise ConfigError(
            f"the names of the classes of {subject} are not known: no ImageNet family has {width}; "
            "pass class_names=[...]"
        )
    return names_like(wanted, width) or synsets(family)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
