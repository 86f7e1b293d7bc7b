"""Likely causes of wrong outputs in a cache, as far as outputs and labels alone show them.

Dimensions: R rows, C classes, N rows among which one is searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdkit.cache.fidelity import kl_divergence

CauseKind = Literal[
    "shifted", "shuffled", "views", "flipped", "classes", "crop", "normalization", "softmax", "one-hot", "temperature"
]
_GOLDEN = (5**0.5 - 1) / 2
_LISTED = 20
_SHOWN_MOVES = 8
_LOG_FLOOR = -20.0  # below it, a class has no mass that could tell it from another
_SOFTMAX_RANGE = 1.05  # of log-probabilities: softmax of numbers from 0 to 1 spans 1 nat, and codecs round
_SURE_TEACHER = 0.5  # mean probability of the top class; an untrained teacher is not so sure


@dataclass(frozen=True)
class Cause:
    """Why the outputs in a cache are not those of its images."""

    kind: CauseKind
    """What is wrong."""
    text: str
    """The same in words, with numbers."""
    class_map: tuple[int, ...] | None = None
    """Of permuted classes: the class of the cache for each class of the data [C]."""

    @classmethod
    def of_classes(cls, class_map: Sequence[int]) -> Cause:
        """Permuted classes: `class_map` holds the cache's class for each class of the data."""
        moved = [f"{mine} is {its}" for mine, its in enumerate(class_map) if mine != its]
        more = f" and {len(moved) - _SHOWN_MOVES} more" if len(moved) > _SHOWN_MOVES else ""
        listed = f"class_map {list(class_map)}" if len(class_map) <= _LISTED else ", ".join(moved[:_SHOWN_MOVES]) + more
        return cls("classes", f"its classes are permuted (data's class is cache's class: {listed})", tuple(class_map))


def undo_softmax(log_probs: Tensor) -> Tensor:
    """Probabilities [R, C] whose softmax `log_probs` [R, C] are, if they are one: they sum to 1."""
    return log_probs + (1 - log_probs.sum(dim=1, keepdim=True)) / log_probs.shape[1]


def is_softmax_of_probabilities(log_probs: Tensor, rounding: float) -> bool:
    """Whether softmax was applied twice: every row [R, C] is the softmax of a distribution that is nearly 0 somewhere.

    Args:
        log_probs: [R, C].
        rounding: what the codec rounds log-probabilities to, nats.
    """
    probs = undo_softmax(log_probs.double())
    near_zero = probs.amin(dim=1).abs() <= max(0.1 / probs.shape[1], rounding)
    spans = (log_probs.amax(dim=1) - log_probs.amin(dim=1)) <= _SOFTMAX_RANGE
    is_sure = probs.amax(dim=1).mean() >= _SURE_TEACHER
    return bool((near_zero & spans).double().mean() >= 0.95 and is_sure)


def fit_temperature(log_probs: Tensor, cached: Tensor, as_stored: Callable[[Tensor], Tensor]) -> float:
    """The temperature T for which softmax(log_probs / T) comes closest to `cached`, both [R, C]; from 1/32 to 32.

    Args:
        log_probs: [R, C].
        cached: [R, C], log-probabilities.
        as_stored: what the cache's codec keeps of log-probabilities [R, C].
    """
    scores = log_probs.clamp_min(_LOG_FLOOR)

    def distance(log_temperature: float) -> float:
        stored = as_stored((scores / math.exp(log_temperature)).log_softmax(dim=1))
        return float(kl_divergence(cached, stored).mean())

    low, high = math.log(1 / 32), math.log(32)
    for _ in range(30):  # by golden section
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if distance(left) < distance(right) else (left, high)
    return math.exp((low + high) / 2)


def match_columns(log_probs: Tensor, cached: Tensor) -> list[int]:
    """The column of `cached` that is each column of `log_probs`, both [R, C]: the closest pairs first, each once.

    Ties, as of classes without any mass, keep their place.
    """
    ours, theirs = log_probs.double().clamp_min(_LOG_FLOOR), cached.double().clamp_min(_LOG_FLOOR)
    distances = torch.cdist(ours.T.contiguous(), theirs.T.contiguous())
    distances.diagonal().sub_(1e-6)
    return match_pairs(distances)


def match_pairs(distances: Tensor) -> list[int]:
    """For each row of `distances` [C, C] its column: the smallest distance first, each row and column once."""
    size = len(distances)
    found, taken, left = [-1] * size, [False] * size, size
    for place in distances.flatten().argsort(stable=True).tolist():
        row, column = divmod(place, size)
        if found[row] < 0 and not taken[column]:
            found[row], taken[column] = column, True
            left -= 1
            if not left:
                break
    return found


def nearest_rows(log_probs: Tensor, cached: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The row with the least KL(log_probs || row) for each of `log_probs` [R, C], int64 [R].

    Args:
        log_probs: [R, C].
        cached: pieces of the cache, each row numbers int64 [N] and their log-probabilities [N, C].
    """
    probs = log_probs.double().exp()
    best, nearest = torch.full((len(probs),), float("inf"), dtype=torch.float64), torch.zeros(len(probs)).long()
    for rows, values in cached:
        cost, place = (-probs @ values.double().T).min(dim=1)
        nearest = torch.where(cost < best, rows[place], nearest)
        best = torch.minimum(cost, best)
    return nearest
