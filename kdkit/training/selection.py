"""What a run trains on: a part of the classes, and a part of the images.

Dimensions: N samples of a dataset, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.cache import CachedTeacher, CacheMixture, CacheReader, ClassSelection, open_cache
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.selection import ClassMap
from kdkit.data import ReplayedDataset
from kdkit.errors import ConfigError
from kdkit.resolve import resolve_teacher
from kdkit.runtime import distributed
from kdkit.runtime.reading import read_json, read_text
from kdkit.training.confidence import ShownViews, choose_views
from kdkit.training.config import DistillConfig
from kdkit.training.train_config import TrainConfig

_MAX_LIST_BYTES = 16 << 20  # a million classes


@dataclass(frozen=True)
class ChosenClasses:
    """The classes that a run's configuration names."""

    names: tuple[str, ...] | None
    """Names of the classes [C], in order; None: those of the data."""
    class_map: ClassMap | None
    """For each class the index or the name of the cache's class; None: it has the same name."""

    @classmethod
    def read(cls, config: DistillConfig) -> ChosenClasses:
        """The classes of a configuration, whose files are read.

        Raises:
            ConfigError: a file cannot be read, or is no list.
        """
        return cls(
            read_class_names(config.class_names), None if config.class_map is None else _read_map(config.class_map)
        )

    def select(self, cache: CacheReader | None, dataset: ReplayedDataset) -> CacheReader | None:
        """The cache of these classes; `cache` itself if the run takes all of its classes, under their own names."""
        if cache is None or (self.names is None and self.class_map is None):
            return cache
        assert isinstance(cache, (CachedTeacher, CacheMixture))
        names = self.names if self.names is not None else dataset.class_names
        return ClassSelection(cache, names, self.class_map)


@dataclass(frozen=True)
class ChosenSamples:
    """The samples of a dataset that a run trains on."""

    rows: Sequence[int]
    """Their dataset rows, ascending."""
    shown: ShownViews | None
    """The view that is shown in place of each; None: each as it is."""

    @property
    def views(self) -> Tensor | None:
        """The view that is shown in place of each view of each dataset row, int64 [N, V]; None: each as it is."""
        return None if self.shown is None else self.shown.views


def choose_samples(
    config: TrainConfig, cache: CacheReader | None, dataset: ReplayedDataset, *, show_progress: bool
) -> ChosenSamples:
    """All samples, or those that the configuration names by a fraction and by the teacher's predictions. Collective.

    Raises:
        ConfigError: no sample would be left.
        CacheStreamError: the teacher's predictions are compared, and the cache has no logits.
    """
    rows: Sequence[int] = range(len(dataset))
    if config.fraction < 1:
        rows = draw_fraction(dataset.keys, dataset.targets, config.fraction, config.fraction_seed)
    shown: ShownViews | None = None
    if cache is not None:
        shown = distributed.on_rank_zero(lambda: choose_views(config, cache, dataset, show_progress=show_progress))
    if shown is not None:
        left = set(shown.rows)
        rows = [row for row in rows if row in left]
        if not rows:
            raise ConfigError("no view of the chosen fraction of the images would be left: lower min_confidence")
    return ChosenSamples(rows, shown)


def open_caches(config: DistillConfig, device: torch.device) -> CacheReader | None:
    """The cache of the run, or the average of several and of a live teacher on the device; None without a cache."""
    if not config.caches:
        return None
    first: CacheReader = open_cache(config.caches[0])
    live = None
    if config.teacher is not None:
        live = resolve_teacher(config.teacher, device, first.class_names if first.names_classes else None)
    cache = first
    if len(config.caches) > 1 or live is not None:
        weights, temperatures = config.cache_weights, config.cache_temperatures
        cache = open_cache(config.caches, weights=weights, temperatures=temperatures, live=live)
    if config.task_kind != "feature":
        cache.check_exists(LOGITS)
    return cache


def draw_fraction(keys: Sequence[str], targets: Any, fraction: float, seed: int) -> list[int]:
    """Draws a fraction of the samples by their keys, as evenly from each class as whole images allow.

    It depends on seed and keys alone, not on their order, and a smaller fraction is a part of a larger one.

    Args:
        keys: keys of the samples [N].
        targets: their class indices int64 [N]; None if they are not known.
        fraction: share of the samples, above 0 and at most 1.
        seed: seed of the draw.

    Returns:
        Their rows, ascending; round(fraction * N) of them.

    Raises:
        ConfigError: there would be none.
    """
    count = round(fraction * len(keys))
    if count == 0:
        raise ConfigError(f"fraction {fraction:g} of {len(keys):,} images is less than one image: give a larger one")
    prefix = f"{seed}\0".encode()
    hashes = np.array(
        [hashlib.blake2b(prefix + key.encode("utf-8", "surrogateescape"), digest_size=8).digest() for key in keys]
    ).view("<u8")
    classes = np.zeros(len(keys), dtype=np.int64) if targets is None else np.asarray(targets)
    by_class = np.lexsort((hashes, classes))
    sizes = np.unique(classes, return_counts=True)[1]
    place = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])  # in its class, from 0 to 1
    order = by_class[np.lexsort((hashes[by_class], place))]
    return sorted(order[:count].tolist())


def read_class_names(given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The names that are given, or that are in the one file that is given; None stays None."""
    return tuple(_read_names(given[0])) if given is not None and len(given) == 1 else given


def _read_names(path: str) -> list[str]:
    """The class names in a file: a JSON list, or one name per line."""
    if path.endswith(".json"):
        found = read_json(path, limit=_MAX_LIST_BYTES)
        if not isinstance(found, list) or {*map(type, found)} != {str}:
            raise ConfigError(f"{path!r} must hold a list of class names")
        return [str(name) for name in found]
    if not Path(path).exists():
        raise ConfigError(
            f"class_names must be at least 2 names, or a file of names (one per line, or a JSON list), got {path!r}"
        )
    lines = [line.strip() for line in read_text(path, limit=_MAX_LIST_BYTES).splitlines()]
    names = [line for line in lines if line]
    if not names:
        raise ConfigError(f"{path!r} holds no class name: expected one per line")
    return names


def _read_map(path: str) -> ClassMap:
    """The class map in a JSON file."""
    found = read_json(path, limit=_MAX_LIST_BYTES)
    if not isinstance(found, list) or {*map(type, found)} not in ({int}, {str}):
        raise ConfigError(f"the class map {path!r} must be a list of whole numbers or one of class names")
    return found
