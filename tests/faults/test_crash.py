"""Faults 2, 3 and 4: a crash or a power loss between any two calls to the file system, of a real build and pack.

Besides invariant I (a right row or a typed error) this checks the purpose of fsync: what was sealed before the
power went is still there and exact, and whatever stands under a final name is whole.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from crash import Disk, Recorder, write_tree
from support import digits_dataset, tiny_model
from synthetic import Synthetic

from kdkit import CacheWriter, build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache.format.metadata import Shard
from kdkit.cache.shards.folder import shard_folder
from kdkit.cache.shards.manifest import read_entry
from kdkit.errors import CacheError
from kdkit.recipe import ViewRecipe
from kdkit.runtime import files

CACHE = Synthetic(num_rows=1100, num_views=2)
SEEDS = (0, 1, 2)


class LostError(AssertionError):
    """Something that was promised is gone or wrong."""


def record(root: Path, **stubs: bool) -> Recorder:
    """A build of four shards and its packing, with a mark where a shard or the pack is promised to be there."""
    root.mkdir()
    recorder = Recorder(root)
    with recorder.recording(**stubs):
        with CACHE.start(root / "t.h5") as writer:
            for shard in writer.missing():
                CACHE.seal(writer, shard)
                recorder.note("promised", shard)
        CACHE.build(root / "t.h5")
        recorder.note("promised", "all")
    recorder.assert_complete()
    return recorder


def check(root: Path, promised: list[Shard | str]) -> None:
    """Raises LostError unless invariant I holds and all that was promised is there."""
    path = root / "t.h5"
    try:
        CACHE.assert_exact(path)
        return
    except CacheError as error:
        if path.is_file():
            raise LostError(f"a packed file has its name, but cannot be read: {error}") from error
    if "all" in promised:
        raise LostError("the packed file is gone")
    try:
        writer = CacheWriter.join(path)
    except CacheError as error:
        if promised:
            raise LostError(f"{len(promised)} shards were sealed, and their folder is lost: {error}") from error
        return
    for shard in CACHE.metadata.shards():
        _check_shard(writer, shard, promised=shard in promised)


def _check_shard(writer: CacheWriter, shard: Shard, *, promised: bool) -> None:
    if shard not in writer.sealed():
        if promised or read_entry(shard_folder(writer.path) / shard.file_name, shard) is not None:
            raise LostError(f"{shard} was sealed and is gone")
        return
    try:
        rows = writer.read(shard)["logits"]
    except CacheError as error:
        raise LostError(f"the manifest names {shard}, but {error}") from error
    if not np.array_equal(rows, CACHE.rows(shard.view, shard.start, shard.stop)):
        raise LostError(f"{shard} is wrong")


def check_every_power_loss(recorder: Recorder, scratch: Path) -> int:
    """Loses power after every event, with three seeds; returns how many states were checked."""
    disk, promised, states = Disk(), [], 0
    for number, event in enumerate(recorder.events):
        if event[0] == "promised":
            promised.append(event[1])
        disk.apply(event)
        for seed in SEEDS:
            write_tree(disk.tree_after_power_loss(random.Random(1000 * number + seed)), scratch)
            check(scratch, promised)
            if number % 10 == seed:
                _check_resume(scratch)
            shutil.rmtree(scratch)
            states += 1
    return states


def _check_resume(root: Path) -> None:
    """Whatever the crash left, building again ends in the undisturbed cache and leaves nothing else."""
    if shard_folder(root / "t.h5").is_dir():
        files.remove_leftovers(shard_folder(root / "t.h5"))
    files.remove_leftovers(root)
    try:
        CACHE.build(root / "t.h5")
        CACHE.assert_exact(root / "t.h5")
    except CacheError as error:
        raise LostError(f"what the crash left cannot be built on: {error}") from error
    assert [place.name for place in root.iterdir()] in (["t.h5"], ["t.h5", "t.h5.parts"], ["t.h5.parts", "t.h5"])


@pytest.mark.slow
def test_fault_02_a_crash_between_any_two_calls_leaves_what_was_sealed_and_can_be_resumed(tmp_path: Path) -> None:
    recorder = record(tmp_path / "run")
    disk, promised = Disk(), []
    for number, event in enumerate(recorder.events):
        if event[0] == "promised":
            promised.append(event[1])
        disk.apply(event)
        write_tree(disk.tree(), tmp_path / "crashed")
        check(tmp_path / "crashed", promised)
        if number % 5 == 0:
            _check_resume(tmp_path / "crashed")
        shutil.rmtree(tmp_path / "crashed")
    kinds = {event[0] for event in recorder.events}
    assert {"create", "write", "size", "fsync", "rename", "fsync folder", "remove", "mkdir", "promised"} <= kinds
    assert len(recorder.events) > 100


@pytest.mark.slow
def test_fault_03_a_power_loss_after_any_call_loses_nothing_that_was_sealed(tmp_path: Path) -> None:
    recorder = record(tmp_path / "run")
    states = check_every_power_loss(recorder, tmp_path / "lost")
    assert states == 3 * len(recorder.events)


@pytest.mark.slow
@pytest.mark.parametrize("stub", ["sync_files", "sync_folders"])
def test_fault_04_with_fsync_stubbed_out_the_test_of_fault_03_fails(tmp_path: Path, stub: str) -> None:
    recorder = record(tmp_path / "run", **{stub: False})
    with pytest.raises(LostError):
        check_every_power_loss(recorder, tmp_path / "lost")


def test_fault_02_03_a_build_by_the_engine_survives_a_crash_or_power_loss_at_any_call(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    recorder = Recorder(root)
    dataset = digits_dataset(1100, ViewRecipe(size=8, hflip=0.0))
    config = BuildConfig(codec="int8", num_workers=0, shard_rows=1000)
    teacher = create_teacher(tiny_model())
    with recorder.recording():
        build_cache(teacher, dataset, root / "t.h5", config)
    recorder.assert_complete()
    expected = open_cache(root / "t.h5").read_encoded(np.arange(1100), 0)
    disk = Disk()
    for number, event in enumerate(recorder.events):
        disk.apply(event)
        for tree in (disk.tree(), disk.tree_after_power_loss(random.Random(number))):
            write_tree(tree, tmp_path / "lost")
            try:
                found = open_cache(tmp_path / "lost" / "t.h5").read_encoded(np.arange(1100), 0)
                assert found.equal(expected)
            except CacheError:
                assert not (tmp_path / "lost" / "t.h5").is_file()
            shutil.rmtree(tmp_path / "lost")
