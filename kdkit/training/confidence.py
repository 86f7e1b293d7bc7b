"""Leave out views on which the teacher is not confident, or does not predict the label: the crop may lack the object.

Zhiqiang Shen, FerKD: Surgical Label Adaptation for Efficient Distillation, ICCV 2023, calibrates by the teacher's
confidence in the same way. Dimensions: N samples of a dataset, V views, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdkit.cache import CachedTeacher, CacheReader
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.statistics import CacheStatistics, compute
from kdkit.cache.types import Array
from kdkit.data import ReplayedDataset
from kdkit.errors import ConfigError
from kdkit.runtime.progress import progress
from kdkit.training.train_config import TrainConfig
from kdkit.types import Batch


@dataclass(frozen=True)
class ShownViews:
    """Which view of each sample is shown in place of each."""

    views: Tensor
    """The view that is shown in place of view v, int64 [N, V]: v itself, or where it is left out the next one of the
    sample that is not, in a circle."""
    rows: list[int]
    """Dataset rows with at least one view left, ascending; the others are not shown."""
    left_out: float
    """Share of all views that is left out."""

    def __str__(self) -> str:
        lost = len(self.views) - len(self.rows)
        images = f", {lost:,} images altogether" if lost else ""
        return f"{self.left_out:.1%} left out by the teacher's predictions{images}"


def choose_views(
    config: TrainConfig, cache: CacheReader, dataset: ReplayedDataset, *, show_progress: bool
) -> ShownViews | None:
    """The views that a run shows; None if its configuration leaves none out.

    Args:
        config: minimum confidence and agreement with the label.
        cache: matched with the dataset; it returns logits.
        dataset: the training images.
        show_progress: whether progress is shown on standard error.

    Raises:
        CacheStreamError: the cache has no logits.
        ConfigError: no view would be left, or labels are compared and views mixed, or labels not known.
    """
    if config.min_confidence is None and not config.label_agreement:
        return None
    cache.check_exists(LOGITS)
    total = len(dataset) * dataset.recipe.num_views
    with progress("reading the teacher's predictions", total, "rows", enabled=show_progress) as advance:
        found = statistics_for(cache, dataset, advance)
    keep = np.ones(found.entropy.shape, dtype=bool)
    if config.min_confidence is not None:
        keep &= found.top1_probability >= config.min_confidence
    if config.label_agreement:
        keep &= found.agrees(_labels(dataset))
    rows = np.flatnonzero(keep.any(axis=1)).tolist()
    if not rows:
        raise ConfigError("no view of any image would be left: lower min_confidence, or leave out label_agreement")
    return ShownViews(torch.from_numpy(replace_views(keep)), rows, float(1 - keep.mean()))


def replace_views(keep: Array) -> Array:
    """For each view of each sample itself if it is kept, else the next one that is, int64 [N, V] from bool [N, V]."""
    num_views = keep.shape[1]
    shown = np.broadcast_to(np.arange(num_views), keep.shape).copy()
    open_places = ~keep
    for shift in range(1, num_views):
        views = (np.arange(num_views) + shift) % num_views
        found = open_places & keep[:, views]
        shown = np.where(found, views, shown)
        open_places &= ~found
    return shown


def statistics_for(cache: CacheReader, dataset: ReplayedDataset, advance: Callable[[int], None]) -> CacheStatistics:
    """The statistics of a matched cache for each sample of the dataset, in the views of its recipe, each [N, V]."""
    num_views = dataset.recipe.num_views
    if isinstance(cache, CachedTeacher):
        return cache.statistics(advance).take(cache.rows_of(torch.arange(len(dataset))), num_views)

    def logits_of(rows: Array, view: int) -> Tensor:
        shape = torch.empty(len(rows), 0)
        output = cache(Batch(shape, torch.zeros(len(rows), dtype=torch.int64), torch.from_numpy(rows), view))
        assert output.logits is not None
        return output.logits

    return compute(logits_of, len(dataset), num_views, advance)


def _labels(dataset: ReplayedDataset) -> Array:
    """The class index of each sample, int64 [N]."""
    if dataset.recipe.mixes:
        raise ConfigError("label_agreement compares the teacher with one label, and the views are mixed: leave it out")
    if dataset.targets is None:
        raise ConfigError("label_agreement needs the labels before images are loaded, and the data does not know them")
    if dataset.is_unlabelled:
        raise ConfigError("label_agreement compares the teacher with labels, and no image has one: leave it out")
    return dataset.targets
