"""A plot of a teacher's outputs: their confidence, entropy and fidelity, view by view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdkit.cache import CachedTeacher
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.summary import main_measure
from kdkit.errors import MissingDependencyError

_ROWS = 4096  # of each view, spread evenly


def confidence_and_entropy(cache: CachedTeacher, view: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probability of the likeliest class, and entropy in nats, [R] each, of up to 4,096 rows of a view."""
    rows = np.unique(np.linspace(0, cache.num_rows - 1, min(_ROWS, cache.num_rows)).astype(np.int64))
    encoded = cache.read(rows, view, LOGITS)
    log_p = cache.codecs[LOGITS].decode(encoded)
    return log_p.exp().amax(dim=1), -(log_p.exp() * log_p).sum(dim=1)


def plot_cache(cache: CachedTeacher, path: str | Path) -> Path:
    """Draws histograms of confidence and entropy, their means by view, and fidelity by view, as a PNG at `path`.

    Fidelity is left out for an older cache, in which it was not measured in every view.

    Raises:
        CacheStreamError: the cache holds no logits.
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError('the plot needs matplotlib: pip install "kdkit[demo]"') from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    views = [confidence_and_entropy(cache, view) for view in range(cache.num_views)]
    fidelity = cache.fidelity()
    columns = 4 if fidelity else 3
    figure, axes = plt.subplots(1, columns, figsize=(4.5 * columns, 4), layout="constrained")
    for place, name in enumerate(("confidence (largest probability)", "entropy, nats")):
        values = torch.cat([view[place] for view in views]).numpy()
        axes[place].hist(values, bins=50)
        axes[place].set(xlabel=name, ylabel="rows", title=f"mean {values.mean():.3f}")
        axes[2].plot([float(view[place].mean()) for view in views], marker="o", label=name)
    axes[2].set(xlabel="view", title="mean by view")
    axes[2].legend()
    if fidelity:
        _plot_fidelity(axes[3], fidelity)
    figure.suptitle(f"{cache.metadata.teacher['name']}: cached outputs")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return Path(path)


def _plot_fidelity(axes: Any, fidelity: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """A line for each stream: mean KL at T = 1, or of features the mean relative error, over the views."""
    for stream, views in fidelity.items():
        unit = "KL, nats at T=1" if stream == LOGITS else "relative error"
        axes.plot([main_measure(view) for view in views], marker="o", label=f"{stream}: {unit}")
    axes.set(xlabel="view", title="fidelity by view (lower keeps more)", ylim=(0, None))
    axes.legend()
