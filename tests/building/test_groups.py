"""A build decodes each image once for several views, and writes the bytes of a build view by view."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from support import RECIPE, CountingDigits, Watched, cache_contents, tiny_model

from kdkit import build_cache, create_teacher, extend_cache
from kdkit.building import shards
from kdkit.building.config import BuildConfig, CacheBuildConfig, CacheExtendConfig
from kdkit.building.groups import ShardGroup, group_shards, share_of_rank, views_in_memory
from kdkit.building.plan import BuildPlan
from kdkit.cache.format.metadata import Shard
from kdkit.cli._parse import parse_config
from kdkit.data import ReplayedDataset
from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe

CONFIG = BuildConfig(streams=("logits", "pooled"), codec="float32", num_workers=0, batch_size=64, shard_rows=1000)
PLAIN = dataclasses.replace(RECIPE, num_views=5, size=16)
MIXED = dataclasses.replace(PLAIN, mixup_alpha=0.8, cutmix_alpha=1.0, views_per_partner=5)


def build(path: Path, source: CountingDigits, recipe: ViewRecipe, config: BuildConfig = CONFIG) -> None:
    build_cache(create_teacher(tiny_model(seed=1)), ReplayedDataset(source, recipe), path, config)


def built_view_by_view(path: Path, source: CountingDigits, recipe: ViewRecipe, config: BuildConfig = CONFIG) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdkit.building.shards.views_in_memory", lambda plan, metadata: 1)
        build(path, source, recipe, config)


@pytest.mark.parametrize("recipe", [PLAIN, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize(("batch_size", "num_workers"), [(64, 0), pytest.param(7, 1, marks=pytest.mark.slow)])
def test_the_cache_is_byte_for_byte_that_of_a_build_view_by_view(
    tmp_path: Path, recipe: ViewRecipe, batch_size: int, num_workers: int
) -> None:
    config = dataclasses.replace(CONFIG, batch_size=batch_size, num_workers=num_workers)
    build(tmp_path / "t.h5", CountingDigits(90), recipe, config)
    built_view_by_view(tmp_path / "plain.h5", CountingDigits(90), recipe, config)
    assert cache_contents(tmp_path / "t.h5") == cache_contents(tmp_path / "plain.h5")


@pytest.mark.parametrize(("recipe", "per_row"), [(PLAIN, 1), (MIXED, 2)], ids=["plain", "mixed"])
def test_each_image_is_decoded_once_and_each_pair_once_for_a_group_of_views(
    tmp_path: Path, recipe: ViewRecipe, per_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, before = CountingDigits(90), [0]
    fill = shards.fill_shards

    def fill_shards(*arguments: Any) -> None:
        before[0] = source.decoded.total()  # to measure the codecs
        fill(*arguments)

    monkeypatch.setattr(shards, "fill_shards", fill_shards)
    build(tmp_path / "t.h5", source, recipe)
    assert source.decoded.total() - before[0] <= per_row * 90  # 5 views of each


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 8, 13])
def test_a_stopped_build_resumes_to_the_same_bytes_whatever_the_memory(tmp_path: Path, stop_at: int) -> None:
    recipe = ViewRecipe(size=8, num_views=4, hflip=0.0)
    config = dataclasses.replace(CONFIG, streams=("logits",), batch_size=400)

    def stop(number: int, logits: torch.Tensor) -> None:
        if number == 2 + stop_at:  # 2 batches are run to measure the codec
            raise KeyboardInterrupt

    dataset = ReplayedDataset(CountingDigits(1100), recipe)
    with pytest.raises(KeyboardInterrupt):
        build_cache(Watched(stop), dataset, tmp_path / "t.h5", config)
    nothing = Watched(lambda number, logits: None)
    build_cache(nothing, dataset, tmp_path / "t.h5", dataclasses.replace(config, memory=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdkit.building.shards.views_in_memory", lambda plan, metadata: 1)
        build_cache(nothing, dataset, tmp_path / "plain.h5", config)
    assert cache_contents(tmp_path / "t.h5") == cache_contents(tmp_path / "plain.h5")


def test_an_extension_decodes_each_image_once_for_the_further_views(tmp_path: Path) -> None:
    build(tmp_path / "t.h5", CountingDigits(90), dataclasses.replace(PLAIN, num_views=2))
    source = CountingDigits(90)
    extend_cache(
        create_teacher(tiny_model(seed=1)),
        ReplayedDataset(source, PLAIN),
        tmp_path / "t.h5",
        batch_size=64,
        num_workers=0,
    )
    assert source.decoded.total() < 3 * 90  # once for three views, and to compare pixels with the cache's
    built_view_by_view(tmp_path / "plain.h5", CountingDigits(90), PLAIN)
    assert cache_contents(tmp_path / "t.h5") == cache_contents(tmp_path / "plain.h5")


def plan_of(recipe: ViewRecipe, **options: int) -> BuildPlan:
    dataset = ReplayedDataset(CountingDigits(90), recipe)
    config = dataclasses.replace(CONFIG, streams=("logits",), **options)
    return BuildPlan(create_teacher(tiny_model(seed=1)), dataset, config)


def test_memory_bounds_the_views_that_are_built_at_the_same_time() -> None:
    recipe = ViewRecipe(size=224, num_views=50)
    metadata = plan_of(PLAIN).make_spec().metadata
    a_view = 64 * 3 * 224 * 224 + 90 * metadata.all_row_bytes
    found = [views_in_memory(plan_of(recipe, memory=memory), metadata) for memory in (1, 64, 2048)]
    assert found == [1, 64 * 2**20 // a_view, 2048 * 2**20 // a_view]
    larger = dataclasses.replace(recipe, teacher_size=448)
    assert views_in_memory(plan_of(larger, memory=64), metadata) == 64 * 2**20 // (a_view + 9 * 64 * 224 * 224)
    with pytest.raises(ConfigError, match=r"memory must be from 1 to .* MiB, got 0"):
        BuildConfig(memory=0)


SHARDS = [Shard(view, start, min(start + 1000, 2500)) for view in range(5) for start in (0, 1000, 2000)]


@pytest.mark.parametrize("views", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 20])
def test_ranks_share_all_shards_evenly_and_groups_are_of_the_same_rows(views: int, world_size: int) -> None:
    groups = group_shards(SHARDS, views)
    shares = [share_of_rank(groups, rank, world_size) for rank in range(world_size)]
    built = [shard for share in shares for group in share for shard in group.shards]
    assert sorted(built, key=SHARDS.index) == SHARDS
    counts = [sum(len(group.shards) for group in share) for share in shares]
    assert max(counts) - min(counts) <= 1
    for group in itertools.chain(*shares):
        assert len({(shard.start, shard.stop) for shard in group.shards}) == 1
        assert len(group.shards) <= views
    assert sum(map(len, shares)) <= len(groups) + world_size - 1  # few images are decoded by two ranks


def test_one_view_at_a_time_is_the_order_of_the_plan_and_a_resumed_build_groups_what_is_left() -> None:
    assert group_shards(SHARDS, 1) == [ShardGroup((shard,)) for shard in SHARDS]
    left = [shard for shard in SHARDS if shard not in (SHARDS[0], SHARDS[4])]
    assert [group.range for group in group_shards(left, 8)] == [
        ((1, 2, 3, 4), 0, 1000),
        ((0, 2, 3, 4), 1000, 2000),
        ((0, 1, 2, 3, 4), 2000, 2500),
    ]


def test_memory_is_a_flag_of_build_and_extend() -> None:
    positionals = {"DATA": "data"}
    flags = ["images", "--teacher", "test_resnet", "-o", "t.h5", "--memory", "512"]
    assert parse_config(CacheBuildConfig, "cache build", flags, positionals).build.memory == 512
    flags = ["t.h5", "images", "--views", "4", "--memory", "512"]
    positionals = {"FILE": "cache", "DATA": "data"}
    assert parse_config(CacheExtendConfig, "cache extend", flags, positionals).memory == 512
