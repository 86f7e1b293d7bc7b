"""Sealed shards stay as they are, two writers of a shard do no lasting damage, and finishing can be repeated."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from synthetic import CLASSES, Synthetic

from kdkit import CacheWriter
from kdkit.cache.format.constants import hashed_rows
from kdkit.cache.format.metadata import Shard
from kdkit.cache.places import pack_cache
from kdkit.errors import CacheCorruptError, CacheError, CacheIncompleteError

CACHE, GROWN = Synthetic(), Synthetic(num_views=3)


def begin(path: Path, *, extended: bool, pack: bool) -> CacheWriter:
    """The writer of a new cache of two views, or of a third view for a finished one."""
    if not extended:
        return CACHE.start(path)
    if not (path.is_file() or path.with_name(path.name + ".parts").is_dir()):
        CACHE.build(path, packed=pack)
    return CacheWriter.extend(path, 3)


def twin(writer: CacheWriter) -> CacheWriter:
    """The writer as another process has it."""
    return pickle.loads(pickle.dumps(writer))


def seal_others(writer: CacheWriter, shard: Shard, seed: int = 0) -> None:
    """Seals a shard with other rows, drawn from the seed, and the same pixels."""
    values = np.random.default_rng(seed).normal(size=(shard.num_rows, CLASSES)).astype("<f4")
    pixels = np.asarray(hashed_rows(shard.start, shard.stop), "<u4") * 3 + shard.view
    writer.seal(shard, {"logits": values.view("u1")}, pixels)


@pytest.mark.parametrize("finished", [True, False])
def test_a_sealed_shard_is_never_replaced_by_other_rows(tmp_path: Path, finished: bool) -> None:
    with CACHE.start(tmp_path / "t.h5") as writer:
        joined, shards = CacheWriter.join(tmp_path / "t.h5"), writer.missing()
        for shard in shards:
            CACHE.seal(writer, shard)
        if finished:
            writer.finish(pack=False)
        with pytest.raises(CacheError, match=r"\(view 0, rows 1000 to 1999\) is sealed already, with other contents"):
            seal_others(joined, shards[1])
        CACHE.seal(joined, shards[1])  # the same rows
        writer.finish(pack=False)
    CACHE.assert_exact(tmp_path / "t.h5")
    assert [file.name for file in (tmp_path / "t.h5.parts").iterdir() if file.name.startswith(".")] == []


def mix_up(writer: CacheWriter, shard: Shard, *, same_size: bool = True) -> None:
    """Leaves what two writers of a shard at the same moment may: the file of one and the entry of the other."""
    [file] = writer.path.parent.glob(f"*/{shard.file_name}")
    entry, size = file.with_suffix(".json"), file.stat().st_size
    kept = entry.read_bytes()
    for seed in range(100):
        entry.unlink()
        seal_others(twin(writer), shard, seed)
        if (file.stat().st_size == size) == same_size:
            break
    assert (file.stat().st_size == size) == same_size
    assert entry.read_bytes() != kept
    entry.write_bytes(kept)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("extended", [True, False])
def test_finishing_finds_mixed_shards_which_are_then_missing_and_written_again(
    tmp_path: Path, pack: bool, extended: bool
) -> None:
    path = tmp_path / "t.h5"
    with begin(path, extended=extended, pack=pack) as writer:
        shards = writer.missing()
        for shard in shards:
            CACHE.seal(writer, shard)
        mix_up(writer, shards[0])
        mix_up(writer, shards[-1])
        assert writer.missing() == []
        with pytest.raises(CacheCorruptError, match=rf"2 shards do not match .* first {shards[0]}: run again"):
            writer.finish(pack=pack)
        assert writer.missing() == [shards[0], shards[-1]]
    with begin(path, extended=extended, pack=pack) as writer:
        for shard in writer.missing():
            CACHE.seal(writer, shard)
        writer.finish(pack=pack)
    (GROWN if extended else CACHE).assert_exact(path)


def test_a_mixed_shard_of_another_size_is_missing_at_once(tmp_path: Path) -> None:
    with CACHE.start(tmp_path / "t.h5") as writer:
        shards = writer.missing()
        for shard in shards:
            CACHE.seal(writer, shard)
        mix_up(writer, shards[2], same_size=False)
        assert writer.missing() == [shards[2]]
        with pytest.raises(CacheIncompleteError):
            writer.finish()
        CACHE.seal(writer, shards[2])
        writer.finish()
    CACHE.assert_exact(tmp_path / "t.h5")


def test_a_mixed_shard_is_mended_by_the_writer_of_its_entry(tmp_path: Path) -> None:
    with CACHE.start(tmp_path / "t.h5") as writer:
        for shard in writer.missing():
            CACHE.seal(writer, shard)
        mix_up(writer, shard)
        CACHE.seal(writer, shard)
        writer.finish()
    CACHE.assert_exact(tmp_path / "t.h5")


@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.parametrize("pack", [True, False])
def test_after_finish_nothing_is_missing_for_any_of_the_writers(tmp_path: Path, pack: bool, extended: bool) -> None:
    path = tmp_path / "t.h5"
    with begin(path, extended=extended, pack=pack) as writer:
        joined, idle = twin(writer), twin(writer)
        shards = writer.missing()
        for shard in shards:
            CACHE.seal(joined, shard)
        place = writer.finish(pack=pack)
        for one in (writer, joined, idle, twin(writer)):
            assert one.missing() == []
            assert one.is_sealed(shards[0])
            assert f"; 0 of {9 if extended else 6} shards missing)" in repr(one)
            with pytest.raises(CacheError):
                seal_others(one, shards[0])
        assert writer.finish(pack=pack) == place
    assert writer.finish() == place
    (GROWN if extended else CACHE).assert_exact(path)


@pytest.mark.parametrize("extended", [True, False])
def test_a_writer_of_shards_that_were_packed_later_has_nothing_missing(tmp_path: Path, extended: bool) -> None:
    path = tmp_path / "t.h5"
    with begin(path, extended=extended, pack=False) as writer:
        joined = twin(writer)
        for shard in writer.missing():
            CACHE.seal(writer, shard)
        writer.finish(pack=False)
    pack_cache(path)
    for one in (writer, joined):
        assert one.missing() == []
        assert one.finish() in (path, path.with_name("t.h5.parts"))
    (GROWN if extended else CACHE).assert_exact(path)


def test_shards_that_vanished_without_being_packed_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    with begin(path, extended=True, pack=True) as writer:
        joined = twin(writer)
        for file in path.with_name("t.h5.parts").glob("*.h5"):
            file.unlink()
        assert {shard.view for shard in joined.missing()} == {2}  # the packed file has the first two views alone


def test_a_writer_that_was_closed_does_not_finish(tmp_path: Path) -> None:
    with CACHE.start(tmp_path / "t.h5") as writer:
        pass
    with pytest.raises(CacheError, match="this writer has joined it, or was closed"):
        writer.finish()
