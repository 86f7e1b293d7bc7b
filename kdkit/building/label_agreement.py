"""Whether a cache's outputs fit the labels of its images, and the likely cause where they do not; no teacher is needed.

A weak teacher is no fault: a cause is named only where another order of rows or classes fits far better than the
cache's own, on rows that were not used to find it. Dimensions: N rows of the cache, R rows that are read, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from kdkit.building.cause import Cause, is_softmax_of_probabilities, match_pairs
from kdkit.cache import CachedTeacher
from kdkit.cache.format.constants import LOGITS
from kdkit.data import ReplayedDataset

Array = np.ndarray[Any, Any]
_ROWS, _CHANGES = 10_000, 2_000  # rows that are read, and places in the row order where the label changes
_VIEWS, _CHUNK = 4, 2048
_SHIFTS = [sign * step for step in range(1, 65) for sign in (-1, 1)]
_LEAST_ROWS = 8
"""Rows on which a shift or a permutation must differ from the order as it stands."""
_GAIN, _LEAST_AGREEMENT, _SIGMAS = 0.3, 0.5, 2.5
_CODEC_ROUNDING = {"topk": 1 / 16, "int8": 0.02, "lowrank": 0.05}  # nats; of the others, a hundredth of a nat
_LEAST_SHUFFLED = 50
_ALIKE = 0.9
"""Share of the rows that the best cause fits, from which on another one is named beside it."""


@dataclass(frozen=True)
class LabelAgreement:
    """How often the cached top-1 is the label."""

    num_rows: int
    """Labelled rows that were read, spread over the cache; each by its mean probabilities over up to 4 views."""
    overall: float
    """Share of them whose top-1 is their label."""
    chance: float
    """The same if outputs and labels had nothing to do with each other."""
    by_class: Mapping[str, float]
    """Class folder -> the share of its rows."""
    cause: Cause | None
    """Why the outputs do not fit the labels, if they do not and it shows."""
    num_views: int = 1
    """Views of each row that were averaged."""

    def describe(self) -> str:
        """One line: the agreement, chance, and the folders that agree least."""
        least = sorted(self.by_class, key=self.by_class.__getitem__)[:3]
        folders = ", ".join(f"{name} {self.by_class[name]:.1%}" for name in least)
        mean = f", each the mean of {self.num_views} views," if self.num_views > 1 else ""
        return (
            f"the top-1 of {self.num_rows:,} images{mean} is their class folder for {self.overall:.1%} (by chance "
            f"{self.chance:.1%}); least: {folders}"
        )


def label_agreement(cache: CachedTeacher, dataset: ReplayedDataset) -> LabelAgreement | None:
    """Compares the outputs with the labels.

    Args:
        cache: matched with `dataset`.
        dataset: the images.

    Returns:
        None if there are no labels of the cache's classes to compare with.
    """
    names, targets = dataset.class_names, dataset.targets
    has_logits = LOGITS in cache.codecs and not cache.is_multi_label
    if names is None or targets is None or not has_logits or len(names) != cache.num_classes or len(names) < 2:
        return None
    labels = np.full(cache.num_rows, -1, np.int64)
    labels[cache.rows_of(torch.arange(len(dataset)))] = targets
    rows = _choose(labels)
    if not (labels[rows] >= 0).any():
        return None
    top, confidence, is_softmaxed = _read(cache, rows)
    read = rows[labels[rows] >= 0]
    right = top[read] == labels[read]
    frequency = [np.bincount(part[read], minlength=len(names)) / len(read) for part in (labels, top)]
    chance = float((frequency[0] * frequency[1]).sum())
    by_class = {names[c]: float(right[labels[read] == c].mean()) for c in np.unique(labels[read]).tolist()}
    found = [_find_shift(top, labels, rows), _find_classes(top, labels, read, len(names))]
    cause = _choose_cause([one for one in found if one is not None])
    if cause is None and is_softmaxed:
        cause = Cause("softmax", "softmax was applied twice: its logits are probabilities")
    if cause is None and _is_unrelated(float(right.mean()), chance, len(read), confidence, frequency):
        cause = Cause(
            "shuffled",
            f"its rows are in another order, or of other images or classes: the top-1 is the label for "
            f"{right.mean():.1%}, which is chance, though the outputs are sure (mean top probability {confidence:.2f})",
        )
    num_views = min(_VIEWS, cache.num_views)
    return LabelAgreement(len(read), float(right.mean()), chance, by_class, cause, num_views)


def _choose_cause(found: Sequence[tuple[float, Cause]]) -> Cause | None:
    """The cause that fits the most rows, and any that fits nearly as many: in class folders both may look alike."""
    if not found:
        return None
    best = max(found, key=lambda one: one[0])
    others = [cause.text for share, cause in found if cause is not best[1] and share >= _ALIKE * best[0]]
    return replace(best[1], text=", or ".join([best[1].text, *others]))


def _choose(labels: Array) -> Array:
    """Rows to read: all of a small cache, else rows at equal distances, and those where the label changes."""
    if len(labels) <= 2 * _ROWS:
        return np.arange(len(labels))
    changes = np.flatnonzero(labels[1:] != labels[:-1])
    changes = changes[:: max(1, len(changes) // _CHANGES)]
    even = np.arange(0, len(labels), len(labels) // _ROWS)
    return np.unique(np.concatenate([even, changes, changes + 1]))


def _read(cache: CachedTeacher, rows: Array) -> tuple[Array, float, bool]:
    """Top-1 of each row [N], -1 if it is not read; a view's mean top probability; whether softmax was applied twice."""
    views = sorted({round(view) for view in np.linspace(0, cache.num_views - 1, min(_VIEWS, cache.num_views))})
    codec, top = cache.codecs[LOGITS], np.full(cache.num_rows, -1, np.int64)
    confidence, softmaxed = 0.0, []
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        decoded = [codec.decode(cache.read_encoded(part, view)) for view in views]
        rounding = _CODEC_ROUNDING.get(codec.name, 0.01)
        softmaxed += [is_softmax_of_probabilities(log_probs, rounding) for log_probs in decoded]
        probs = torch.stack([log_probs.exp() for log_probs in decoded]).mean(dim=0)
        top[part] = probs.argmax(dim=1).numpy()
        confidence += sum(float(log_probs.amax(dim=1).exp().sum()) for log_probs in decoded) / len(decoded)
    return top, confidence / len(rows), all(softmaxed)


def _find_shift(top: Array, labels: Array, rows: Array) -> tuple[float, Cause] | None:
    """Rows that hold others' outputs at a fixed distance: seen where the label of the other row differs.

    Returns:
        The share of all rows whose top-1 fits then, and the cause; of several shifts the one that fits the most rows.
    """
    found = []
    for shift in _SHIFTS:
        theirs = labels[(rows - shift) % len(labels)]
        telling = (labels[rows] != theirs) & (labels[rows] >= 0) & (theirs >= 0)
        own, other = top[rows[telling]] == labels[rows[telling]], top[rows[telling]] == theirs[telling]
        if _fits_better(other, own):
            text = (
                f"its rows are shifted by {shift:+}: the outputs of row r are in row r{shift:+} (of {len(own)} rows "
                f"with another label there, the top-1 fits {other.mean():.1%} so, {own.mean():.1%} as they stand)"
            )
            found.append((float((top[rows] == theirs)[theirs >= 0].mean()), Cause("shifted", text)))
    return max(found, key=lambda one: one[0], default=None)


def _find_classes(top: Array, labels: Array, read: Array, num_classes: int) -> tuple[float, Cause] | None:
    """Classes that are permuted: found on every other row, judged on the others; with the share of rows that fits."""
    fit, judged = read[::2], read[1::2]
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels[fit], top[fit]), 1)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    mutual = shares.argmax(axis=0)[shares.argmax(axis=1)] == np.arange(num_classes)
    is_sure = mutual & (shares.max(axis=1) > 0)
    weights = np.where(is_sure[:, None], shares, 0.0) + 1e-6 * np.eye(num_classes)
    class_map = match_pairs(torch.from_numpy(-weights))
    moved = judged[np.array(class_map)[labels[judged]] != labels[judged]]
    mapped = np.array(class_map)[labels[moved]]
    if not _fits_better(top[moved] == mapped, top[moved] == labels[moved]):
        return None
    return float((top[judged] == np.array(class_map)[labels[judged]]).mean()), Cause.of_classes(class_map)


def _fits_better(other: Array, own: Array) -> bool:
    """Whether `other` is right far more often than `own`, bool [R] each, and not by luck."""
    if len(own) < _LEAST_ROWS or other.mean() < max(_LEAST_AGREEMENT, own.mean() + _GAIN):
        return False
    won, lost = (other & ~own).sum(), (own & ~other).sum()
    return bool(won - lost > _SIGMAS * np.sqrt(won + lost))


def _is_unrelated(agreement: float, chance: float, num_rows: int, confidence: float, frequency: list[Array]) -> bool:
    """Whether outputs that are sure, and of many classes, are right no more often than by chance."""
    entropy = [-float((part[part > 0] * np.log(part[part > 0])).sum()) for part in frequency]
    noise = _SIGMAS * np.sqrt(chance * (1 - chance) / num_rows)
    is_telling = confidence >= max(_LEAST_AGREEMENT, 3 * chance) and entropy[1] >= entropy[0] / 2 > 0
    return bool(num_rows >= _LEAST_SHUFFLED and is_telling and agreement <= chance + noise)
