"""The limits that FORMAT.md states, checked for a plan: no build ends in a file that kdkit would not open."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support import Pixels, digits
from synthetic import Synthetic

from kdkit import build_cache, extend_cache
from kdkit.building.config import BuildConfig
from kdkit.cache.format.limits import check_storable, list_bytes
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.errors import ConfigError, DatasetError
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher
from kdkit.types import Batch, TeacherOutput

CONFIG = BuildConfig(codec="float16", num_workers=0)
PLAN = Synthetic(num_rows=20, num_views=1).metadata
FEATURE = {"codec": {"name": "int8", "shape": [4]}, "row_bytes": 12}


def _logits(**changes: Any) -> dict[str, Any]:
    return {"logits": {"codec": {"name": "float32", "num_classes": 6}, "row_bytes": 24, **changes}}


def _named(count: int, length: int) -> dict[str, Any]:
    return {**PLAN.dataset, "class_names": ["n" * length] * count}


LIMITS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"num_views": 10_000}, {"num_views": 10_001}, "num_views is 10001, expected a whole number from 1 to 10000"),
    ({"num_rows": 1 << 40, "shard_rows": 1_000_000_000}, {"num_rows": (1 << 40) + 1}, "num_rows is 10995116277"),
    ({"num_rows": 1000 << 20}, {"num_rows": (1000 << 20) + 1}, "more than 1048576 shards"),
    ({"streams": _logits(row_bytes=1 << 24)}, {"streams": _logits(row_bytes=(1 << 24) + 1)}, "row_bytes is 16777217"),
    (
        {"streams": _logits(codec={"name": "topk", "num_classes": 1 << 20})},
        {"streams": _logits(codec={"name": "topk", "num_classes": (1 << 20) + 1})},
        "num_classes is 1048577, expected a whole number from 1 to 1048576",
    ),
    ({"streams": {"s" * 64: FEATURE}}, {"streams": {"s" * 65: FEATURE}}, "a stream is called 's"),
    (
        {"streams": {"s": {**FEATURE, "codec": {"name": "int8", "shape": [4, 5, 6]}}}},
        {"streams": {"s": {**FEATURE, "codec": {"name": "int8", "shape": [4, 5, 6, 7]}}}},
        "shape is a list, expected 1 to 3 whole numbers",
    ),
    ({"dataset": _named(16, 1 << 19)}, {"dataset": _named(16, 1 << 20)}, "metadata document would have 16,77"),
    (
        {"num_views": 10_000, "streams": {f"features.{number}": FEATURE for number in range(35)}},
        {"num_views": 10_000, "streams": {f"features.{number}": FEATURE for number in range(45)}},
        "list of checksums would have .* use fewer views or streams",
    ),
]


@pytest.mark.parametrize(("most", "more", "message"), LIMITS)
def test_a_plan_at_a_limit_is_taken_and_one_beyond_it_refused(
    most: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    check_storable(dataclasses.replace(PLAN, **most), ())
    with pytest.raises(ConfigError, match=message):
        check_storable(dataclasses.replace(PLAN, **more), ())


def test_the_list_of_checksums_is_as_long_as_was_reckoned_but_for_short_checksums(tmp_path: Path) -> None:
    cache = Synthetic(num_rows=20, num_views=11)
    with h5py.File(cache.build(tmp_path / "t.h5")) as file:
        listed = str(file.attrs["kdkit_arrays"], "utf-8")
    sums = json.loads(listed)
    short = sum(10 - len(str(crc32)) for crc32 in sums.values())
    index = [name for name in sums if not name.startswith("views/")]
    assert list_bytes(cache.metadata, index) == len(listed) + short - 1  # the braces, but no comma behind the last


class _NeverRuns(Teacher):
    def forward(self, batch: Batch) -> TeacherOutput:
        raise AssertionError("the teacher ran")


class _ManyClasses(Pixels):
    num_classes = (1 << 20) + 1


def _keyed(keys: list[str]) -> ReplayedDataset:
    images = np.zeros((len(keys), 8, 8), dtype=np.uint8)
    return ReplayedDataset(ArraySource(images, [0] * len(keys), keys=keys), ViewRecipe(size=8))


def _views(count: int) -> ReplayedDataset:
    return ReplayedDataset(digits(8), ViewRecipe(size=8, num_views=count))


@pytest.mark.parametrize(
    ("model", "dataset", "error", "message"),
    [
        (Pixels, lambda: _views(10_001), ConfigError, r"num_views is 10001, expected .* 10000"),
        (_ManyClasses, lambda: _keyed(["a"]), ConfigError, r"num_classes is 1048577"),
        (Pixels, lambda: _keyed(["k" * 5000]), DatasetError, r"1 sample keys take 5000 bytes, .* 4096"),
        (Pixels, lambda: _keyed(["a\0b"]), DatasetError, r"'a\\x00b' holds a NUL"),
    ],
)
def test_a_plan_that_no_cache_can_hold_is_refused_before_the_teacher_runs(
    tmp_path: Path,
    model: Callable[[], Pixels],
    dataset: Callable[[], ReplayedDataset],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        build_cache(_NeverRuns(model()), dataset(), tmp_path / "t.h5", CONFIG)
    assert not (tmp_path / "t.h5.parts" / "index.h5").exists()


def test_a_cache_is_not_extended_to_more_views_than_one_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    build_cache(Teacher(Pixels()), _views(1), path, CONFIG)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"num_views is 10001, expected a whole number from 1 to 10000"):
        extend_cache(Teacher(Pixels()), _views(10_001), path, num_workers=0)
    assert path.read_bytes() == before
