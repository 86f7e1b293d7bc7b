"""What a cache holds of the teacher's predictions, in figures per row and view.

Dimensions: C classes, R rows, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.cache import CachedTeacher
from kdkit.cache.format.constants import LOGITS
from kdkit.errors import ConfigError

MAX_ROWS = 4096
"""Rows that figures are taken from, spread evenly over a larger cache."""
_CHUNK = 512  # rows that are decoded at once: 1,000 classes in float32 are 2 MB

Array = np.ndarray[Any, Any]


def spread(count: int, total: int) -> Array:
    """At most `count` of the numbers 0 to total - 1, evenly spread, int64."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


def read_log_probs(cache: CachedTeacher, rows: Array, view: int) -> Tensor:
    """Log-probabilities [R, C] of cache rows int64 [R] in a view, float32 on the CPU.

    Raises:
        CacheStreamError: the cache holds no logits.
        ConfigError: they are multi-label.
    """
    cache.check_exists(LOGITS)
    if cache.is_multi_label:
        raise ConfigError(f"the cache {str(cache.path)!r} is multi-label: probabilities over the classes are not shown")
    return _read_logits(cache, rows, view).log_softmax(dim=1)


def read_probabilities(cache: CachedTeacher, rows: Array, view: int) -> Tensor:
    """Probabilities [R, C] of cache rows int64 [R] in a view, float64 on the CPU; of several labels each by itself.

    Raises:
        CacheStreamError: the cache holds no logits.
    """
    cache.check_exists(LOGITS)
    if cache.is_multi_label:
        return _read_logits(cache, rows, view).double().sigmoid()
    return read_log_probs(cache, rows, view).double().exp()


def _read_logits(cache: CachedTeacher, rows: Array, view: int) -> Tensor:
    return cache.codecs[LOGITS].decode(cache.read_encoded(rows, view, LOGITS)).float()


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy of each row [R], nats."""
    found: Tensor = torch.special.entr(log_probs.exp()).sum(dim=-1)
    return found


def label_loss(cache: CachedTeacher, rows: Array, views: Sequence[int], labels: Tensor) -> Tensor:
    """The teacher's cross-entropy with `labels` [R], mean over the views [R], nats; 0 if there is no label (-1)."""
    total = torch.zeros(len(rows))
    for view in views:
        log_probs = read_log_probs(cache, rows, view)
        total -= log_probs.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    return total / len(views) * (labels >= 0)


def scores(cache: CachedTeacher, rows: Array, views: Sequence[int]) -> dict[str, Tensor]:
    """How uncertain the teacher is about each of the cache's `rows`, over `views`.

    Returns:
        "entropy": mean entropy over the views [R], nats; "disagreement": the Jensen-Shannon divergence of the views'
        predictions [R], nats: the entropy of their mean, less their mean entropy. It is 0 if all views agree. Of
        several labels per image both are the sums over the classes.
    """
    found: dict[str, list[Tensor]] = {"entropy": [], "disagreement": []}
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        # in float64, in which views that all but agree do not drown in rounding; [V, R, C]
        probabilities = torch.stack([read_probabilities(cache, chunk, view) for view in views])
        if cache.is_multi_label:  # each class is a distribution of its own: yes and no
            probabilities = torch.cat([probabilities, 1 - probabilities], dim=-1)
        mean_entropy = torch.special.entr(probabilities).sum(dim=-1).mean(dim=0)
        found["entropy"].append(mean_entropy)
        of_mean = torch.special.entr(probabilities.mean(dim=0)).sum(dim=1)
        found["disagreement"].append((of_mean - mean_entropy).clamp_min(0))
    return {name: torch.cat(parts) for name, parts in found.items()}
