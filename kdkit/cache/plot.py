"""A picture of the teacher's outputs in a cache: how confident they are, and how much of them is kept, by view.

Dimensions: R rows, V views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.cache import CachedTeacher
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.summary import main_measure
from kdkit.errors import MissingDependencyError
from kdkit.runtime.install import install_command

_ROWS = 4096  # of each view, spread evenly
_QUANTILES = (0.1, 0.5, 0.9)
_CERTAIN = 0.9  # confidence from which a prediction counts as certain
_COLOR, _ACCENT = "#1f63c4", "#d1741b"


def confidence_and_entropy(cache: CachedTeacher, view: int) -> tuple[Tensor, Tensor]:
    """Probability of the likeliest class, and entropy in nats, [R] each, of up to 4,096 rows of a view."""
    rows = np.unique(np.linspace(0, cache.num_rows - 1, min(_ROWS, cache.num_rows)).astype(np.int64))
    encoded = cache.read_encoded(rows, view, LOGITS)
    logits = cache.codecs[LOGITS].decode(encoded).float()
    if cache.is_multi_label:  # a distribution per class: its likeliest label, and the sum of their entropies
        p = logits.sigmoid()
        return p.amax(dim=1), (torch.special.entr(p) + torch.special.entr(1 - p)).sum(dim=1)
    log_p = logits.log_softmax(dim=1)
    return log_p.exp().amax(dim=1), torch.special.entr(log_p.exp()).sum(dim=1)


def plot_cache(cache: CachedTeacher, path: str | Path) -> Path:
    """Draws the teacher's confidence, its confidence and entropy by view, and fidelity by view, as a PNG at `path`.

    The title of each part states its message. Fidelity is left out for a cache from before it was measured in every
    view.

    Raises:
        CacheStreamError: the cache holds no logits.
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(f"the plot needs matplotlib: {install_command('demo')}") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cache.check_exists(LOGITS)
    views = [confidence_and_entropy(cache, view) for view in range(cache.num_views)]
    confidence, entropies = (torch.stack(values) for values in zip(*views, strict=True))
    fidelity = cache.fidelity()
    rows = -(-(3 + len(fidelity)) // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(10, 3.4 * rows), layout="constrained")
    places = list(grid.flat)
    _plot_confidence(places[0], confidence.flatten())
    _plot_by_view(places[1], confidence, "confidence")
    _plot_by_view(places[2], entropies, "entropy, nats")
    for axes, (stream, measured) in zip(places[3:], fidelity.items(), strict=False):
        _plot_fidelity(axes, stream, measured, multi_label=cache.is_multi_label)
    for axes in places[3 + len(fidelity) :]:
        axes.remove()
    figure.suptitle(f"{cache.metadata.teacher['name']}: {cache.num_rows:,} samples x {cache.num_views} views")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return Path(path)


def _plot_confidence(axes: Any, confidence: Tensor) -> None:
    """A histogram on all confidences that there can be, so that two caches compare at a glance."""
    share = 100 * np.histogram(confidence.numpy(), bins=20, range=(0, 1))[0] / len(confidence)
    middle, certain = float(confidence.median()), float((confidence > _CERTAIN).float().mean())
    axes.bar(np.arange(20) / 20 + 0.025, share, width=0.046, color=_COLOR)
    axes.axvline(middle, color=_ACCENT)
    axes.annotate(f" median {middle:.2f}", (middle, 1), xycoords=("data", "axes fraction"), va="top", color=_ACCENT)
    axes.set(xlim=(0, 1), xlabel="confidence (probability of the likeliest class)", ylabel="% of rows")
    _state(axes, f"The teacher is certain (above {_CERTAIN}) in {certain:.0%} of the rows")


def _plot_by_view(axes: Any, values: Tensor, label: str) -> None:
    """Median, and the band from the 10th to the 90th percentile, of [V, R]."""
    low, middle, high = np.quantile(values.numpy(), _QUANTILES, axis=1)
    means = values.mean(dim=1)
    axes.errorbar(np.arange(len(middle)), middle, yerr=(middle - low, high - middle), fmt="o", capsize=4, color=_COLOR)
    axes.axhline(float(means.mean()), color=_ACCENT, linewidth=1)
    axes.set(xlabel="view (point: median, bar: 10th to 90th percentile; line: mean)", ylabel=label, ylim=(0, None))
    between = f": {float(means.min()):.2f} to {float(means.max()):.2f} by view" if len(means) > 1 else ""
    _state(axes, f"Mean {label.partition(',')[0]} {float(means.mean()):.2f}{between}")
    _number_views(axes, len(middle))


def _plot_fidelity(axes: Any, stream: str, views: Sequence[Mapping[str, float]], *, multi_label: bool) -> None:
    """Mean KL at T = 1, or of features the mean relative error, by view; from 0, where all is kept."""
    values = [main_measure(view) for view in views]
    worst = f"{max(values):.2g}"
    unit, cost = "relative error", f"relative error at most {worst}"
    if "kl_mean_t1" in views[0]:
        unit, cost = "KL, nats at T = 1", f"KL at most {worst} nats"
    axes.bar(range(len(values)), values, width=0.7, color=_COLOR)
    axes.set(xlabel="view", ylabel=f"{unit}, mean (0 keeps all)", ylim=(0, None))
    axes.ticklabel_format(axis="y", scilimits=(-3, 3))
    kept = [view["top1_agreement"] for view in views if "top1_agreement" in view and not multi_label]
    _state(axes, f"{stream}: top-1 kept in {min(kept):.1%}, {cost}" if kept else f"{stream}: {cost}")
    _number_views(axes, len(values))


def _state(axes: Any, message: str) -> None:
    """Puts the message of a part above it."""
    axes.set_title(message, loc="left", weight="bold", fontsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)


def _number_views(axes: Any, count: int) -> None:
    step = -(-count // 10)
    axes.set_xticks(range(0, count, step))
