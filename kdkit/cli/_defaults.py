"""Defaults that follow from other options: the views of a run without a cache, and the size of a run's own images."""

from __future__ import annotations

from pathlib import Path

from kdkit.building.config import CacheBuildConfig, CacheEstimateConfig
from kdkit.config import TeacherConfig
from kdkit.training.config import DistillConfig

_VIEWS, _SIZE = "recipe.num_views", "recipe.size"


def of_run(config: DistillConfig) -> dict[str, int]:
    """Without a cache: the size of the live teacher's own images, and a new view in each epoch."""
    if config.caches:
        return {}
    found, recipe = _size_of(config.teacher), config.recipe
    is_given = recipe is not None or bool(found)
    is_random = recipe is None or recipe.augment
    return found | ({_VIEWS: config.train.epochs} if is_given and is_random else {})


def of_build(config: CacheBuildConfig | CacheEstimateConfig) -> dict[str, int]:
    """The size of the teacher's own images, if it is a run or an export, and no other cache has decided."""
    return {} if getattr(config, "like", None) is not None else _size_of(config.teacher)


def _size_of(teacher: TeacherConfig | None) -> dict[str, int]:
    if teacher is None or teacher.input_size is not None or not Path(teacher.model).is_dir():
        return {}
    from kdkit.student import input_size_of  # loads torch

    size = input_size_of(teacher.model)
    return {} if size is None else {_SIZE: size}
