"""More views for a finished cache: the same bytes as if all had been built at once, and the old ones always there."""

from __future__ import annotations

import dataclasses
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from crash import Disk, Recorder, write_tree
from support import RECIPE, Pixels, Watched, cache_contents, digits, digits_dataset, tiny_model

from kdkit import build_cache, create_teacher, extend_cache, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache.places import pack_cache
from kdkit.cache.shards.folder import shard_folder
from kdkit.cache.shards.lock import writer_lock
from kdkit.data import ReplayedDataset
from kdkit.errors import CacheError, CacheIncompleteError, CacheLockedError, CacheMismatchError
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher
from kdkit.types import Batch

CONFIG = BuildConfig(codec="int8", num_workers=0, batch_size=50)
PLAIN = ViewRecipe(size=8, hflip=0.0)


def seen(views: int, rows: int = 120, recipe: ViewRecipe = PLAIN) -> ReplayedDataset:
    return ReplayedDataset(digits(rows), dataclasses.replace(recipe, num_views=views))


def extend(path: Path, dataset: ReplayedDataset, teacher: Teacher | None = None, batch_size: int = 50) -> int:
    """Extends the cache, and returns the number of images on which the teacher ran."""
    teacher = teacher or Teacher(Pixels())
    return extend_cache(teacher, dataset, path, batch_size=batch_size, num_workers=0).images_built


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, bytes]:
    """What a build of 4 views at once holds."""
    build_cache(Teacher(Pixels()), seen(4), tmp_path / "plain.h5", CONFIG)
    return cache_contents(tmp_path / "plain.h5")


@pytest.mark.parametrize("steps", [[4], [3, 4]])
def test_an_extended_cache_is_to_the_byte_what_a_build_at_once_would_have_been(
    tmp_path: Path, plain: dict[str, bytes], steps: list[int]
) -> None:
    build_cache(Teacher(Pixels()), seen(2), tmp_path / "t.h5", CONFIG)
    for views in steps:
        extend(tmp_path / "t.h5", seen(views))
    assert cache_contents(tmp_path / "t.h5") == plain
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.h5", "t.h5"]
    open_cache(tmp_path / "t.h5", seen(4)).verify()


def test_a_cache_in_parts_is_extended_in_its_folder_and_packs_to_the_same_bytes(
    tmp_path: Path, plain: dict[str, bytes]
) -> None:
    build_cache(Teacher(Pixels()), seen(2), tmp_path / "t.h5", dataclasses.replace(CONFIG, pack=False))
    assert extend(shard_folder(tmp_path / "t.h5"), seen(4)) == 240
    assert open_cache(tmp_path / "t.h5", seen(4)).num_views == 4
    assert pack_cache(shard_folder(tmp_path / "t.h5")) == tmp_path / "t.h5"  # by the folder's name as by the file's
    assert cache_contents(tmp_path / "t.h5") == plain


def test_a_fitted_codec_is_kept_and_used_for_the_further_views(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, codec="lowrank", codec_options={"row_bytes": 12}, batch_size=40)
    teacher = create_teacher(tiny_model())
    for name, views in (("t.h5", 1), ("plain.h5", 2)):
        build_cache(teacher, seen(views, 60, RECIPE), tmp_path / name, config)
    extend(tmp_path / "t.h5", seen(2, 60, RECIPE), teacher, batch_size=40)
    assert cache_contents(tmp_path / "t.h5") == cache_contents(tmp_path / "plain.h5")


@pytest.mark.parametrize("pack", [True, False])
def test_the_old_cache_is_read_and_found_finished_while_it_is_extended_and_after_a_stop(
    tmp_path: Path, plain: dict[str, bytes], pack: bool
) -> None:
    path, old = tmp_path / "t.h5", seen(2)
    build_cache(Teacher(Pixels()), old, path, dataclasses.replace(CONFIG, pack=pack))
    expected = [open_cache(path).read_encoded(np.arange(120), view) for view in (0, 1)]

    def look(number: int, logits: torch.Tensor | None = None) -> None:
        cache = open_cache(path, old)
        assert cache.num_views == 2
        assert all(torch.equal(cache.read_encoded(np.arange(120), view), expected[view]) for view in (0, 1))
        if number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend(path, seen(4), Watched(look))
    look(0)
    if pack:
        assert build_cache(Teacher(Pixels()), old, path, CONFIG).images_built == 0  # leaves the extension alone
    else:
        with pytest.raises(CacheIncompleteError, match="extend"):
            pack_cache(path)
    assert extend(path, seen(4)) in (120, 240)  # view 2 was whole, and may have been sealed by then
    if not pack:
        pack_cache(path)
    assert cache_contents(path) == plain


def test_an_extension_that_was_stopped_may_go_on_to_another_number_of_views(
    tmp_path: Path, plain: dict[str, bytes]
) -> None:
    path = tmp_path / "t.h5"
    build_cache(Teacher(Pixels()), seen(1), path, CONFIG)

    def stop(number: int, logits: torch.Tensor) -> None:
        if number == 7:  # within the third of the further views, and once the first is sealed
            deadline = time.monotonic() + 60
            while not list(shard_folder(path).glob("v0001-*.json")) and time.monotonic() < deadline:
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend(path, seen(6), Watched(stop))
    assert extend(path, seen(4)) in (120, 240)
    assert cache_contents(path) == plain


@pytest.mark.slow
@pytest.mark.parametrize("pack", [True, False])
def test_a_crash_or_power_loss_at_any_call_of_an_extension_leaves_the_old_views_or_all(
    tmp_path: Path, pack: bool
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    recorder = Recorder(root)
    with recorder.recording():
        build_cache(Teacher(Pixels()), seen(1), root / "t.h5", dataclasses.replace(CONFIG, pack=pack))
        begun = len(recorder.events)
        extend(root / "t.h5", seen(3))
    recorder.assert_complete()
    expected = [open_cache(root / "t.h5").read_encoded(np.arange(120), view) for view in range(3)]
    disk, found_views = Disk(), []
    for number, event in enumerate(recorder.events):
        disk.apply(event)
        if number < begun:
            continue
        for tree in (disk.tree(), disk.tree_after_power_loss(random.Random(number))):
            write_tree(tree, tmp_path / "lost")
            cache = open_cache(tmp_path / "lost" / "t.h5")
            cache.verify()
            found_views.append(cache.num_views)
            for view in range(cache.num_views):
                assert cache.read_encoded(np.arange(120), view).equal(expected[view])
            if number % 7 == 0:
                extend(tmp_path / "lost" / "t.h5", seen(3))
                found = open_cache(tmp_path / "lost" / "t.h5", seen(3)).read_encoded(np.arange(120), 2)
                assert found.equal(expected[2])
            shutil.rmtree(tmp_path / "lost")
    assert set(found_views) == {1, 3}


def test_another_teacher_recipe_or_dataset_is_refused_with_field_and_both_values(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    teacher = create_teacher(tiny_model())
    build_cache(teacher, digits_dataset(8), path, CONFIG)
    more = dataclasses.replace(RECIPE, num_views=3)
    other = create_teacher(tiny_model(seed=1))
    with pytest.raises(CacheMismatchError, match=r"teacher\.weights_sha256 = .*, this run has "):
        extend(path, digits_dataset(8, more), other)
    with pytest.raises(CacheMismatchError, match=r"recipe\.seed = 7, this run has 8"):
        extend(path, digits_dataset(8, dataclasses.replace(more, seed=8)), teacher)
    with pytest.raises(CacheMismatchError, match=r"1 of 8 samples are missing now \('digit-7'\)"):
        extend(path, digits_dataset(7, more), teacher)
    with pytest.raises(CacheMismatchError, match=r"recipe\.num_views = 2, this run has 1: extend it to more"):
        extend(path, digits_dataset(8, dataclasses.replace(RECIPE, num_views=1)), teacher)
    changed = digits(8)
    changed.images = changed.images ^ 0x10
    with pytest.raises(CacheMismatchError, match="its content differs"):
        extend(path, ReplayedDataset(changed, more), teacher)
    assert not shard_folder(path).exists()
    assert extend(path, digits_dataset(8), teacher) == 0
    report = extend_cache(
        other, digits_dataset(8, more), path, num_workers=0, allow_mismatch={"teacher.weights_sha256"}
    )
    assert (report.num_views, report.images_built) == (3, 8)


def test_the_folder_of_another_caches_extension_is_not_built_on(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    for recipe in (PLAIN, dataclasses.replace(PLAIN, seed=1)):
        build_cache(Teacher(Pixels()), seen(1, recipe=recipe), tmp_path / f"{recipe.seed}.h5", CONFIG)
    (tmp_path / "0.h5").rename(path)

    def stop(number: int, logits: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend(path, seen(2), Watched(stop))
    (tmp_path / "1.h5").replace(path)
    with pytest.raises(CacheMismatchError, match="holds shards of another cache"):
        extend(path, seen(2, recipe=dataclasses.replace(PLAIN, seed=1)))


def leave(folder: Path, views: int) -> None:
    """The shards of a build of so many views, as a folder of that name."""
    build_cache(Teacher(Pixels()), seen(views), folder.with_name("left.h5"), dataclasses.replace(CONFIG, pack=False))
    shard_folder(folder.with_name("left.h5")).rename(folder)


def test_shards_of_fewer_views_than_a_packed_cache_has_are_not_packed_into_it(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    build_cache(Teacher(Pixels()), seen(2), path, CONFIG)
    before = cache_contents(path)
    leave(shard_folder(path), 1)
    with pytest.raises(CacheMismatchError, match=r"t\.h5\.parts' is of 1 views, expected at least the 2 .*; delete"):
        pack_cache(path)
    assert cache_contents(path) == before
    assert build_cache(Teacher(Pixels()), seen(2), path, CONFIG).images_built == 0
    assert not shard_folder(path).exists()


def test_a_packing_that_died_before_it_removed_the_shards_is_finished_by_another(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    build_cache(Teacher(Pixels()), seen(2), path, CONFIG)
    before = cache_contents(path)
    leave(shard_folder(path), 2)
    pack_cache(path)
    assert cache_contents(path) == before
    assert not shard_folder(path).exists()


def test_leftover_shards_of_fewer_views_do_not_disturb_an_extension(tmp_path: Path, plain: dict[str, bytes]) -> None:
    path = tmp_path / "t.h5"
    build_cache(Teacher(Pixels()), seen(2), path, CONFIG)
    leave(shard_folder(path), 1)
    extend(path, seen(4))
    assert cache_contents(path) == plain


def test_an_extension_does_not_go_on_where_another_process_has_just_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.h5"
    for name, views in (("t.h5", 1), ("grown.h5", 2)):
        build_cache(Teacher(Pixels()), seen(views), tmp_path / name, CONFIG)

    @contextmanager
    def slow_lock(folder: Path) -> Iterator[None]:
        with writer_lock(folder):
            (tmp_path / "grown.h5").replace(path)  # what another process did while this one waited for the lock
            yield

    monkeypatch.setattr("kdkit.cache.writer.writer_lock", slow_lock)
    with pytest.raises(CacheLockedError, match="was just extended by another process: run again"):
        extend(path, seen(3))
    assert open_cache(path).num_views == 2


def test_a_run_may_use_the_first_views_of_a_cache_and_no_more_than_there_are(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    build_cache(Teacher(Pixels()), seen(3), path, CONFIG)
    cache = open_cache(path, seen(2))
    assert cache(Batch(torch.empty(1, 0), torch.zeros(1), torch.tensor([5]), 1)).logits is not None
    with pytest.raises(CacheMismatchError, match=r"recipe\.num_views = 3, this run has 4: add views with `kdkit cache"):
        open_cache(path, seen(4))
    with pytest.raises(CacheMismatchError, match=r"recipe\.num_views = 3, this run has 4: add views with `kdkit cache"):
        build_cache(Teacher(Pixels()), seen(4), path, CONFIG)


def test_an_unfinished_cache_is_not_extended(tmp_path: Path) -> None:
    build_cache(Teacher(Pixels()), seen(2), tmp_path / "t.h5", dataclasses.replace(CONFIG, pack=False))
    next(shard_folder(tmp_path / "t.h5").glob("v0001*.json")).unlink()
    with pytest.raises(CacheIncompleteError):
        extend(tmp_path / "t.h5", seen(3))
    with pytest.raises(CacheError, match="there is no cache"):
        extend(tmp_path / "other.h5", seen(3))
