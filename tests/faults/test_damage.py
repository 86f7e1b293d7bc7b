"""Faults 7, 8 and 9: files that were cut, and bits that were flipped.

Invariant I throughout: every row is bit-exact, or a typed CacheError is raised; never a wrong value, never a signal.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from synthetic import Synthetic

from kdkit import open_cache
from kdkit.errors import CacheCorruptError, CacheError, CacheIncompleteError

CACHE = Synthetic()


def _cuts(size: int) -> list[int]:
    """Every 4 KiB boundary below `size` and one byte either side, and the last byte."""
    around = {boundary + side for boundary in range(0, size + 4096, 4096) for side in (-1, 0, 1)}
    return sorted(cut for cut in around | {size - 1} if 0 <= cut < size)


def test_fault_07_a_file_cut_at_any_4_kib_boundary_is_refused_at_open(tmp_path: Path) -> None:
    path = CACHE.build(tmp_path / "t.h5")
    content = path.read_bytes()
    cuts = _cuts(len(content))
    assert len(cuts) > 90
    for cut in reversed(cuts):
        os.truncate(path, cut)
        with pytest.raises(CacheCorruptError, match=r"t\.h5"):
            open_cache(path)


def test_fault_07_a_cut_shard_or_index_is_refused_at_open(tmp_path: Path) -> None:
    folder = CACHE.build(tmp_path / "t.h5", packed=False)
    for name, kind in (("v0001-r0000001000.h5", CacheIncompleteError), ("index.h5", CacheCorruptError)):
        content = (folder / name).read_bytes()
        for cut in reversed(_cuts(len(content))):
            os.truncate(folder / name, cut)
            with pytest.raises(kind):
                open_cache(folder)
        (folder / name).write_bytes(content)
    CACHE.assert_exact(folder)


def test_fault_07_a_cut_shard_whose_entry_agrees_is_refused_at_open_too(tmp_path: Path) -> None:
    folder = CACHE.build(tmp_path / "t.h5", packed=False)
    shard, entry = folder / "v0001-r0000001000.h5", folder / "v0001-r0000001000.json"
    size, text = shard.stat().st_size, entry.read_text()
    for cut in reversed(_cuts(size)):
        os.truncate(shard, cut)
        entry.write_text(text.replace(str(size), str(cut)))
        with pytest.raises(CacheCorruptError, match="v0001-r0000001000"):
            open_cache(folder)


CUT_WHILE_OPEN = """
import os, sys
import numpy as np
from kdkit import open_cache
from kdkit.errors import CacheCorruptError
path, victim = sys.argv[1:]
cache = open_cache(path)
cache.read_encoded(np.arange(10), 0)  # the first block is verified: later reads of it touch no checksum
os.truncate(victim, 4096)
for rows in (np.arange(10), np.arange(500), np.array([700])):
    try:
        cache.read_encoded(rows, 0)
    except CacheCorruptError as error:
        assert "was cut from" in str(error) and os.path.basename(victim) in str(error), error
    else:
        raise SystemExit("a cut file was read")
"""


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_fault_07_a_file_cut_while_it_is_open_raises_and_does_not_end_the_process(tmp_path: Path, packed: bool) -> None:
    path = CACHE.build(tmp_path / "t.h5", packed=packed)
    victim = path if packed else path / "v0000-r0000000000.h5"
    done = subprocess.run(
        [sys.executable, "-c", CUT_WHILE_OPEN, str(path), str(victim)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)


def _blocks(path: Path, cache: Synthetic) -> Iterator[tuple[Path, int, int, int]]:
    """(file, offset of a block's first byte, view, first row) of every payload block, as plain h5py finds them."""
    for file_path in [path] if path.is_file() else sorted(path.glob("v*.h5")):
        first = 0 if path.is_file() else int(file_path.stem.rpartition("r")[2])
        with h5py.File(file_path) as file:
            for view in file["views"]:
                rows = file[f"views/{view}/logits"]
                for start in range(0, rows.shape[0], 1000):
                    yield file_path, rows.id.get_offset() + start * rows.shape[1], int(view), first + start


@pytest.mark.parametrize("packed", [True, False])
def test_fault_08_one_flipped_bit_in_any_payload_block_is_a_checksum_error_that_names_rows(
    tmp_path: Path, packed: bool
) -> None:
    path = CACHE.build(tmp_path / "t.h5", packed=packed)
    blocks = list(_blocks(path, CACHE))
    assert len(blocks) == 6
    draw = random.Random(8)
    for file_path, offset, view, first in blocks:
        rows = min(1000, CACHE.num_rows - first)
        with _flipped(file_path, offset + draw.randrange(rows * 24), draw.randrange(8)):
            cache = open_cache(path)
            named = rf"{file_path.name}: view {view}, rows {first} to {first + rows - 1} of 'logits'"
            with pytest.raises(CacheCorruptError, match=named):
                cache.read_encoded(np.array([first + rows - 1]), view)
            others = np.array([row for row in range(0, CACHE.num_rows, 250) if not first <= row < first + rows])
            assert np.array_equal(cache.read_encoded(others, view).numpy(), CACHE.rows(view)[others])
            with pytest.raises(CacheCorruptError, match=named):
                open_cache(path).verify()
    CACHE.assert_exact(path)


@contextmanager
def _flipped(path: Path, offset: int, bit: int, also: tuple[int, ...] = ()) -> Iterator[None]:
    """The file with that bit of that byte changed in place, and whole bytes `also` inverted; put back afterwards."""
    descriptor = os.open(path, os.O_RDWR)
    before = {place: os.pread(descriptor, 1, place) for place in (offset, *also)}
    for place, byte in before.items():
        os.pwrite(descriptor, bytes([byte[0] ^ (1 << bit if place == offset else 0xFF)]), place)
    try:
        yield
    finally:
        for place, byte in before.items():
            os.pwrite(descriptor, byte, place)
        os.close(descriptor)


def _outside_payload(path: Path) -> list[int]:
    """Offsets of all bytes but the payload's, which fault 8 covers."""
    payload = np.zeros(path.stat().st_size, dtype=bool)
    with h5py.File(path) as file:
        for view in file.get("views", ()):
            rows = file[f"views/{view}/logits"]
            payload[rows.id.get_offset() : rows.id.get_offset() + rows.nbytes] = True
    return np.flatnonzero(~payload).tolist()


@pytest.mark.slow
def test_fault_09_thousands_of_random_flips_in_metadata_manifest_and_root_attribute_keep_the_invariant(
    tmp_path: Path,
) -> None:
    small = Synthetic(num_rows=1100, num_views=2)
    packed, folder = small.build(tmp_path / "a.h5"), small.build(tmp_path / "b.h5", packed=False)
    with h5py.File(packed) as file:
        attribute = packed.read_bytes().index(bytes(file.attrs["kdkit"]))
        in_attribute = range(attribute, attribute + len(file.attrs["kdkit"]))
    shard = folder / "v0001-r0000001000.h5"
    targets = [
        (packed, packed, _outside_payload(packed), 1000),
        (packed, packed, list(in_attribute), 250),
        (folder, folder / "index.h5", _outside_payload(folder / "index.h5"), 400),
        (folder, shard, _outside_payload(shard), 500),
        (folder, shard.with_suffix(".json"), list(range(shard.with_suffix(".json").stat().st_size)), 350),
    ]
    assert sum(count for *_, count in targets) == 2500  # benchmarks/fuzz.py makes 10,000 mutations
    draw = random.Random(9)
    for opened, victim, offsets, count in targets:
        refused = 0
        for number in range(count):
            also = tuple(draw.choice(offsets) for _ in range(3)) if number % 4 == 3 else ()
            with _flipped(victim, draw.choice(offsets), draw.randrange(8), also):
                try:
                    small.assert_exact(opened)
                except CacheError as error:
                    assert victim.name in str(error) or folder.name in str(error)  # noqa: PT017 -- either way is right
                    refused += 1
        assert refused > count // 4, victim  # so the flips did reach something
        small.assert_exact(opened)


def test_fault_09_a_flip_in_any_byte_of_the_superblock_and_of_the_documents_is_refused(tmp_path: Path) -> None:
    small = Synthetic(num_rows=300, num_views=1)
    path = small.build(tmp_path / "t.h5")
    content = path.read_bytes()
    with h5py.File(path) as file:
        documents = [bytes(file.attrs[name]) for name in ("kdkit", "kdkit_arrays")]
    places = [*range(48)]
    for document in documents:
        assert content.count(document) == 1
        places += range(content.index(document), content.index(document) + len(document), 3)
    for place in places:
        with _flipped(path, place, place % 8), pytest.raises(CacheError):
            open_cache(path)


def test_fault_09_a_flip_in_any_small_array_is_refused_where_it_is_read(tmp_path: Path) -> None:
    small = Synthetic(num_rows=300, num_views=1)
    path = small.build(tmp_path / "t.h5")
    with h5py.File(path) as file:
        names = ["rows/key_digest", "rows/keys_zlib", "views/0000/logits_crc32", "views/0000/pixel_crc32"]
        spans = {name: (file[name].id.get_offset(), file[name].nbytes) for name in names}
    for name, (offset, size) in spans.items():
        for place in {0, size // 2, size - 1}:
            with _flipped(path, offset + place, 5):
                with pytest.raises(CacheCorruptError, match=name):
                    small.assert_exact(path)
                with pytest.raises(CacheCorruptError, match=name):
                    open_cache(path).verify()
