"""The parts of a mix of teachers checked against one another: weights, temperatures, classes, recorded views."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from kdkit.cache.format.constants import LOGITS, RECORDS
from kdkit.cache.reader import CachedTeacher
from kdkit.errors import CacheMismatchError, ClassMismatchError, ConfigError
from kdkit.types import Batch, Normalization, TeacherOutput

_COMPARED_ROWS, _COMPARED_VIEWS = 256, 4  # of recorded views; those of another run differ almost everywhere
_TEMPERATURES = 1e-6, 1e6  # log-probabilities in float32 stay finite when they are divided by these


class LiveTeacher(Protocol):
    """The part of a teacher that a mix needs; kdkit.Teacher has it."""

    name: str

    @property
    def num_classes(self) -> int | None:
        """Width C of its logits."""
        ...

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of its classes [C], if they are known."""
        ...

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Its outputs for a batch."""
        ...

    def for_input(self, normalization: Normalization) -> LiveTeacher:
        """The same teacher, whose images arrive in this normalisation."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What identifies it, as plain JSON values."""
        ...


Part = CachedTeacher | LiveTeacher


def name_part(part: Part) -> str:
    """The part as errors name it."""
    return f"the cache {str(part.path)!r}" if isinstance(part, CachedTeacher) else f"the live teacher {part.name!r}"


def fingerprint_of(part: Part) -> Mapping[str, Any]:
    """What identifies its teacher."""
    return part.teacher if isinstance(part, CachedTeacher) else part.fingerprint()


def identity_of(part: Part) -> str:
    """The identity of the cache, or of the live teacher's weights."""
    if isinstance(part, CachedTeacher):
        return part.identity
    return f"live {hashlib.sha256(json.dumps(part.fingerprint(), sort_keys=True).encode()).hexdigest()}"


def has_logits(part: Part) -> bool:
    """Whether it gives logits: a teacher without a head and a cache of features alone do not."""
    return LOGITS in part.codecs if isinstance(part, CachedTeacher) else part.num_classes != 0


def names_of(part: Part) -> list[str] | None:
    """Names of the classes of its logits; None if they are not known, as of imported labels of other classes."""
    names = None if isinstance(part, CachedTeacher) and not part.names_classes else part.class_names
    return None if names is None else list(names)


def shares_of(parts: Sequence[Part], weights: Sequence[float] | None) -> tuple[float, ...]:
    """The weights of the parts with logits, scaled to sum 1; 0 for the others.

    All are 0 if no part has logits, or if the parts with logits have the weight 0 beside others, which give features:
    so a live teacher can give no more than its classifier.

    Raises:
        ConfigError: the weights do not fit, or a part without logits has one.
    """
    given, with_logits = _one_each("weights", weights, parts), [has_logits(part) for part in parts]
    for part, weight, gives in zip(parts, given, with_logits, strict=True):
        if weights is not None and weight > 0 and not gives:
            raise ConfigError(f"{name_part(part)} has no logits to average, but the weight {weight:g}: give it 0")
    shares = [weight * gives for weight, gives in zip(given, with_logits, strict=True)]
    if min(given) < 0 or (all(with_logits) and sum(shares) <= 0):
        raise ConfigError(f"weights must be 0 or more and not all 0, got {list(given)}")
    if not math.isfinite(sum(shares)):
        raise ConfigError(f"weights must have a finite sum, got {list(given)}: divide them by a common factor")
    return tuple(share / (sum(shares) or 1.0) for share in shares)


def temperatures_of(parts: Sequence[Part], temperatures: Sequence[float] | None) -> tuple[float, ...]:
    """The temperature of each part; 1 each when None.

    Raises:
        ConfigError: they do not fit.
    """
    found = _one_each("temperatures", temperatures, parts)
    if not all(_TEMPERATURES[0] <= temperature <= _TEMPERATURES[1] for temperature in found):
        raise ConfigError(f"temperatures must be above 0, from 1e-6 to 1e6, got {list(found)}")
    return found


def _one_each(name: str, numbers: Sequence[float] | None, parts: Sequence[Part]) -> tuple[float, ...]:
    """One finite number per part; 1 each when None."""
    if numbers is None:
        return (1.0,) * len(parts)
    is_live = not isinstance(parts[-1], CachedTeacher)
    counted = f"{len(parts) - is_live} caches{' and for the live teacher' if is_live else ''}"
    expected = f"{name} must hold one finite number for each of {counted}"
    try:
        found = [float(number + 0) for number in numbers]  # a text fails, which float() alone would read
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{expected}, got {numbers!r}") from None
    if len(found) != len(parts) or not all(map(math.isfinite, found)):
        raise ConfigError(f"{expected}, got {found}")
    return tuple(found)


def check_same_classes(parts: Sequence[Part]) -> None:
    """Compares the number of classes, and the class names that parts know.

    Raises:
        ClassMismatchError: they differ.
        ConfigError: a cache is multi-label.
    """
    for part in parts:
        if isinstance(part, CachedTeacher):
            part.check_averageable()
    counts = [(part, part.num_classes) for part in parts if has_logits(part) and part.num_classes is not None]
    for part, count in counts[1:]:
        if count != counts[0][1]:
            raise ClassMismatchError(
                f"{name_part(part)} has {count} classes, {name_part(counts[0][0])} has {counts[0][1]}: teachers that "
                "are mixed have the same classes; give one of them a class_map"
            )
    named = [(part, names) for part in parts if (names := names_of(part)) is not None]
    for part, names in named[1:]:
        first, expected = named[0]
        if names == expected:
            continue
        at = next((at for at, pair in enumerate(zip(names, expected, strict=False)) if pair[0] != pair[1]), None)
        found = f"{len(names)} classes and {len(expected)}"
        if at is not None:
            found = f"class {at} as {names[at]!r} and {expected[at]!r}"
        raise ClassMismatchError(f"{name_part(part)} and {name_part(first)} have {found}: build one from the same data")


def check_same_records(caches: Sequence[CachedTeacher], num_rows: int, num_views: int) -> None:
    """Compares the recorded views of matched caches, on up to 256 rows of the dataset in up to four views.

    Args:
        caches: matched with a dataset of `num_rows` rows.
        num_rows, num_views: of the dataset, and the views that are shown.

    Raises:
        CacheMismatchError: a view was recorded otherwise, or names its partner in another order of rows.
    """
    first, *others = [cache for cache in caches if RECORDS in cache.metadata.streams] or caches
    if first.recipe.recorded is None:
        return
    rows = torch.arange(0, num_rows, max(1, num_rows // _COMPARED_ROWS))
    views = sorted({int(view) for view in np.linspace(0, num_views - 1, _COMPARED_VIEWS)})
    for other in others:
        if "mixing" in first.recipe.recorded and first.keys() != other.keys():
            raise CacheMismatchError(
                f"the views of {name_part(first)} and {name_part(other)} are mixed with images that each names by its "
                "own order of rows, and these differ: build one with --like from the other"
            )
        for view in views:
            mine, theirs = (cache.read_records(cache.rows_of(rows), view) for cache in (first, other))
            if wrong := (mine != theirs).any(dim=1).nonzero().flatten().tolist():
                key = first.keys()[int(first.rows_of(rows)[wrong[0]])]
                raise CacheMismatchError(
                    f"{name_part(other)} has recorded another view {view} of {key!r} than {name_part(first)}: mix "
                    "teachers that saw the same views, such as one built with --like from the other's cache"
                )
