"""Defaults that follow from other options: a live run's views, the size of a run's own images, what arrays are of."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from kdkit.building.config import CacheBuildConfig, CacheEstimateConfig
from kdkit.config import TeacherConfig
from kdkit.importers.config import CacheImportConfig
from kdkit.training.config import DistillConfig

_VIEWS, _SIZE, _AUGMENT = "recipe.num_views", "recipe.size", "recipe.augment"
_OF_EVALUATION = {_SIZE, "recipe.crop_pct", "recipe.interpolation", "recipe.teacher_size", "recipe.seed"}
"""Fields that describe an evaluation view, or no more than the numbers of random ones."""


def of_run(config: DistillConfig, given: Set[str]) -> dict[str, int]:
    """Without a cache: the size of the live teacher's own images, and a new view in each epoch."""
    if config.caches:
        return {}
    found, recipe = _size_of(config.teacher), config.recipe
    is_given = recipe is not None or bool(found)
    is_random = recipe is None or recipe.augment
    return found | ({_VIEWS: config.train.epochs} if is_given and is_random else {})


def of_build(config: CacheBuildConfig | CacheEstimateConfig, given: Set[str]) -> dict[str, int]:
    """The size of the teacher's own images, if it is a run or an export, and no other cache has decided."""
    return {} if getattr(config, "like", None) is not None else _size_of(config.teacher)


def of_import(config: CacheImportConfig, given: Set[str]) -> dict[str, bool]:
    """Arrays are outputs on the evaluation view unless random views are described; a size describes none."""
    described = {name for name in given if name.startswith("recipe.")} - _OF_EVALUATION
    is_random = config.recipe is not None and config.recipe.interpolation == "random"
    return {} if config.recipe is None or described or is_random else {_AUGMENT: False}


def _size_of(teacher: TeacherConfig | None) -> dict[str, int]:
    if teacher is None or not Path(teacher.model).is_dir():
        return {}
    from kdkit.student import input_size_of  # loads torch

    size = input_size_of(teacher)
    return {} if size is None else {_SIZE: size}
