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
    columns = 3 + len(fidelity)
    figure, axes = plt.subplots(1, columns, figsize=(4.2 * columns, 3.8), layout="constrained")
    _plot_confidence(axes[0], confidence.flatten())
    _plot_by_view(axes[1], confidence, "confidence", "confidence")
    _plot_by_view(axes[2], entropies, "entropy", "entropy, nats")
    for place, (stream, measured) in zip(axes[3:], fidelity.items(), strict=True):
        _plot_fidelity(place, stream, measured, multi_label=cache.is_multi_label)
    figure.suptitle(f"{cache.metadata.teacher['name']}: {cache.num_rows:,} samples x {cache.num_views} views")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return Path(path)


def _plot_confidence(axes: Any, confidence: Tensor) -> None:
    """A histogram on all confidences that there can be, so that two caches compare at a glance."""
    share = 100 * np.histogram(confidence.numpy(), bins=20, range=(0, 1))[0] / len(confidence)
    middle = float(confidence.median())
    axes.bar(np.arange(20) / 20 + 0.025, share, width=0.046)
    axes.axvline(middle, color="tab:orange")
    axes.set(xlim=(0, 1), xlabel="confidence (probability of the likeliest class)", ylabel="% of rows")
    axes.set_title(f"half of the rows are above {middle:.2f}")


def _plot_by_view(axes: Any, values: Tensor, name: str, label: str) -> None:
    """Median, and the band from the 10th to the 90th percentile, of [V, R]."""
    low, middle, high = np.quantile(values.numpy(), _QUANTILES, axis=1)
    numbers = np.arange(len(middle))
    axes.errorbar(numbers, middle, yerr=(middle - low, high - middle), fmt="o", capsize=4)
    means = values.mean(dim=1)
    axes.set(xlabel="view (point: median, bar: 10th to 90th percentile)", ylabel=label, ylim=(0, None))
    axes.set_title(f"mean {name} {float(means.min()):.2f} to {float(means.max()):.2f}")
    _number_views(axes, len(middle))


def _plot_fidelity(axes: Any, stream: str, views: Sequence[Mapping[str, float]], *, multi_label: bool) -> None:
    """Mean KL at T = 1, or of features the mean relative error, by view; from 0, where all is kept."""
    values = [main_measure(view) for view in views]
    unit = "KL, nats at T = 1" if "kl_mean_t1" in views[0] else "relative error"
    axes.bar(range(len(values)), values, width=0.7)
    axes.set(xlabel="view", ylabel=f"{unit}, mean (0 keeps all)", ylim=(0, None))
    axes.ticklabel_format(axis="y", scilimits=(-3, 3))
    kept = [view["top1_agreement"] for view in views if "top1_agreement" in view and not multi_label]
    axes.set_title(
        f"{stream}: top-1 kept in {min(kept):.1%} of rows" if kept else f"{stream}: at most {max(values):.2g}"
    )
    _number_views(axes, len(values))


def _number_views(axes: Any, count: int) -> None:
    step = -(-count // 10)
    axes.set_xticks(range(0, count, step))
