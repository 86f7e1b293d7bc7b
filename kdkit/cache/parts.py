"""The parts of a mix of teachers checked against one another: weights, temperatures, classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from kdkit.cache.format.constants import LOGITS
from kdkit.cache.reader import CachedTeacher
from kdkit.errors import ClassMismatchError, ConfigError
from kdkit.types import Batch, Normalization, TeacherOutput

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


def has_logits(part: Part) -> bool:
    """Whether it gives logits: a teacher without a head and a cache of features alone do not."""
    return LOGITS in part.codecs if isinstance(part, CachedTeacher) else part.num_classes != 0


def shares_of(parts: Sequence[Part], weights: Sequence[float] | None) -> tuple[float, ...]:
    """The weights of the parts with logits, scaled to sum 1; 0 for the others. All 0 if no part has logits.

    Raises:
        ConfigError: the weights do not fit, or a part without logits has one.
    """
    given, with_logits = _one_each("weights", weights, parts), [has_logits(part) for part in parts]
    for part, weight, gives in zip(parts, given, with_logits, strict=True):
        if weights is not None and weight > 0 and not gives:
            raise ConfigError(f"{name_part(part)} has no logits to average, but the weight {weight:g}: give it 0")
    shares = [weight * gives for weight, gives in zip(given, with_logits, strict=True)]
    if min(given) < 0 or (any(with_logits) and sum(shares) <= 0):
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
    named = [(part, list(part.class_names)) for part in parts if part.class_names is not None]
    for part, names in named[1:]:
        first, expected = named[0]
        if names == expected:
            continue
        at = next((at for at, pair in enumerate(zip(names, expected, strict=False)) if pair[0] != pair[1]), None)
        found = f"{len(names)} classes and {len(expected)}"
        if at is not None:
            found = f"class {at} as {names[at]!r} and {expected[at]!r}"
        raise ClassMismatchError(f"{name_part(part)} and {name_part(first)} have {found}: build one from the same data")
