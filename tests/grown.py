"""Caches of digits without cost, to which images are added and from which they are removed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from support import CLASSES, Pixels, digits

from kdkit import ViewRecipe, build_cache, extend_cache, open_cache
from kdkit.building.config import BuildConfig
from kdkit.data import MultiLabelSource, ReplayedDataset
from kdkit.data.sources.selection import SelectedSource
from kdkit.teachers import Teacher

PLAIN = ViewRecipe(size=8, hflip=0.0, num_views=2)
CONFIGS = {
    "float32": BuildConfig(codec="float32", num_workers=0, batch_size=50),
    "int8": BuildConfig(codec="int8", num_workers=0, batch_size=50),
    "sigmoid_int8": BuildConfig(codec="sigmoid_int8", num_workers=0, batch_size=50),
    "lowrank": BuildConfig(codec="lowrank", codec_options={"row_bytes": 12}, num_workers=0, batch_size=50),
}


def seen(
    rows: Any, recipe: ViewRecipe = PLAIN, views: int = 2, codec: str = "", class_names: Any = CLASSES
) -> ReplayedDataset:
    """These digits, in this order; for a codec of several labels per image each has its digit and the next one."""
    source: Any = digits(400)
    if codec.startswith("sigmoid"):
        both = np.eye(10)[source.targets] + np.eye(10)[(source.targets + 1) % 10]
        source = MultiLabelSource(source, both, class_names=CLASSES)
    part = SelectedSource(source, list(rows))
    part.class_names = class_names
    return ReplayedDataset(part, dataclasses.replace(recipe, num_views=views))


def build(path: Path, rows: Any, config: BuildConfig = CONFIGS["int8"], **options: Any) -> Path:
    build_cache(Teacher(Pixels()), seen(rows, codec=str(config.codec), **options), path, config)
    return path


def extend(path: Path, rows: Any, teacher: Teacher | None = None, **options: Any) -> int:
    """Extends the cache, and returns the number of images on which the teacher ran."""
    return extend_cache(teacher or Teacher(Pixels()), seen(rows, **options), path, num_workers=0).images_built


def rows_by_key(path: Path) -> dict[tuple[str, int, str], bytes]:
    """(key, view, stream) -> the encoded row."""
    cache = open_cache(path)
    places = np.arange(cache.num_rows)
    return {
        (key, view, stream): row.tobytes()
        for view in range(cache.num_views)
        for stream in cache.codecs
        for key, row in zip(cache.keys(), cache.read_encoded(places, view, stream).numpy(), strict=True)
    }
