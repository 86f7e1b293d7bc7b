"""Faults 22, 23 and 24: odd names, huge offsets, few rows."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import RECIPE, digits, tiny_model
from synthetic import Synthetic

from kdkit import CacheWriter, build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache.format.constants import num_hashed_rows
from kdkit.cache.format.metadata import CacheMetadata
from kdkit.cache.hdf5.documents import write_metadata
from kdkit.cache.hdf5.layout import lay_out, write_document
from kdkit.cache.shards.folder import shard_folder
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.errors import CacheCorruptError, CacheError, CacheNotFoundError, DatasetError

NAMES = {
    "spaces": " a  name with spaces .h5",
    "unicode": "größe 雪 é́ \U0001f9ea.h5",
    "no utf-8": os.fsdecode(b"\xff\xfe.h5"),
    "quotes and a newline": 'it\'s "so"\nand so.h5',
    "dots": "..h5",
    "pattern": "[a]*?.h5",
    "long": "n" * 246 + ".h5",
    "long, of wide characters": "雪" * 82 + ".h5",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [True, False])
def test_fault_22_unicode_spaces_and_very_long_names_work(tmp_path: Path, name: str, packed: bool) -> None:
    cache = Synthetic(num_rows=1001, num_views=1, prefix="schlüssel 雪/" + "k" * 300)
    folder = tmp_path / "ein ordner 雪" / ("o" * 255)
    path = cache.build(folder / NAMES[name], packed=packed)
    assert path == (folder / NAMES[name] if packed else shard_folder(folder / NAMES[name]))
    cache.assert_exact(folder / NAMES[name])
    assert sorted(folder.iterdir()) == [path]


@pytest.mark.parametrize("length", [250, 255, 256, 5000])
def test_fault_22_a_name_that_no_file_can_have_is_a_typed_error(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("n" * (length - 3) + ".h5")
    with pytest.raises(CacheNotFoundError, match="there is no cache at"):
        open_cache(path)
    with pytest.raises(CacheError, match="File name too long"):
        CacheWriter.create(path, Synthetic().spec)


def test_fault_22_unicode_keys_and_class_names_go_through_a_build(tmp_path: Path) -> None:
    source = digits(4)
    keys = ["größe.png", "雪/雪 雪.png", os.fsdecode(b"bad-\xff.png"), "x" * 3000]
    names = [f"класс {i} \U0001f9ea" for i in range(10)]
    dataset = ReplayedDataset(ArraySource(source.images, source.targets, keys=keys, class_names=names), RECIPE)
    build_cache(create_teacher(tiny_model()), dataset, tmp_path / "t.h5", BuildConfig(codec="float32", num_workers=0))
    cache = open_cache(tmp_path / "t.h5", dataset)
    assert cache.keys() == keys
    assert cache.metadata.dataset["class_names"] == names


SPARSE_ROWS = (1 << 31) + 5001


def _write_sparse(path: Path, metadata: CacheMetadata, marked: list[int]) -> None:
    """A packed cache of float32 rows of zeros but for the marked ones, which hold (row, row + 0.5); takes megabytes."""
    row_bytes, blocks = 8, -(-metadata.num_rows // 1000)
    sums = np.full(blocks, zlib.crc32(bytes(1000 * row_bytes)), dtype="<u4")
    sums[-1] = zlib.crc32(bytes((metadata.num_rows - 1000 * (blocks - 1)) * row_bytes))
    for block in {row // 1000 for row in marked}:
        rows = np.zeros((min(1000, metadata.num_rows - 1000 * block), 2), dtype="<f4")
        for row in marked:
            if row // 1000 == block:
                rows[row % 1000] = _marked(row)
        sums[block] = zlib.crc32(rows.tobytes())
    shapes = {
        "rows/key_digest": ((metadata.num_rows, 16), np.dtype("u1")),
        "views/0000/pixel_crc32": ((num_hashed_rows(0, metadata.num_rows),), np.dtype("<u4")),
        "views/0000/logits_crc32": (sums.shape, sums.dtype),
        "views/0000/logits": ((metadata.num_rows, row_bytes), np.dtype("u1")),
        "rows/keys_zlib": ((10,), np.dtype("u1")),
    }

    def set_attributes(file: h5py.File) -> None:
        write_metadata(file, metadata)
        stated = {name: 0 for name in shapes if name != "views/0000/logits"}
        write_document(file, "kdkit_arrays", json.dumps({**stated, "views/0000/logits_crc32": zlib.crc32(sums)}))

    layout = lay_out(shapes, set_attributes)
    with open(path, "xb") as file:
        file.truncate(layout.num_bytes)
        for offset, piece in layout.pieces:
            os.pwrite(file.fileno(), piece, offset)
        os.pwrite(file.fileno(), sums.tobytes(), layout.offsets["views/0000/logits_crc32"])
        for row in marked:
            os.pwrite(file.fileno(), _marked(row).tobytes(), layout.offsets["views/0000/logits"] + row * row_bytes)


def _marked(row: int) -> np.ndarray:
    return np.array([row % 1000 + 1, row // 1000], dtype="<f4")


def test_fault_23_rows_beyond_2_to_the_31_at_offsets_beyond_4_gib_are_the_right_rows(tmp_path: Path) -> None:
    metadata = dataclasses.replace(
        Synthetic(num_rows=1, num_views=1).metadata,
        num_rows=SPARSE_ROWS,
        shard_rows=10**7,
        streams={"logits": {"codec": {"name": "float32", "num_classes": 2}, "row_bytes": 8}},
    )
    marked = [0, 999, (1 << 29) + 3, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, SPARSE_ROWS - 1]
    _write_sparse(tmp_path / "t.h5", metadata, marked)
    assert (tmp_path / "t.h5").stat().st_size > 40 << 30
    assert (tmp_path / "t.h5").stat().st_blocks * 512 < 50 << 20
    with h5py.File(tmp_path / "t.h5") as file:
        assert file["views/0000/logits"].id.get_offset() > 4 << 30
    cache = open_cache(tmp_path / "t.h5")
    assert cache.num_rows == SPARSE_ROWS
    rows = np.array([*reversed(marked), (1 << 31) + 2, 1, 0])
    expected = np.array([*map(_marked, reversed(marked)), [0, 0], [0, 0], _marked(0)], dtype="<f4")
    assert np.array_equal(cache.read_encoded(rows, 0).numpy().view("<f4"), expected)
    with pytest.raises(CacheError, match=f"rows 0 to {SPARSE_ROWS - 1}, got row {SPARSE_ROWS}"):
        cache.read_encoded(np.array([SPARSE_ROWS]), 0)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 999, 1000, 1001, 2300])
@pytest.mark.parametrize("packed", [True, False])
def test_fault_24_no_row_one_row_and_a_last_partial_shard_are_exact(
    tmp_path: Path, num_rows: int, packed: bool
) -> None:
    cache = Synthetic(num_rows=num_rows)
    path = cache.build(tmp_path / "t.h5", packed=packed)
    cache.assert_exact(path)
    opened = open_cache(path)
    opened.verify()
    assert opened.read_encoded(np.array([], dtype=np.int64), 1).shape == (0, 24)
    with pytest.raises(CacheError, match=f"got row {num_rows}"):
        opened.read_encoded(np.array([num_rows]), 0)


def test_fault_24_a_dataset_of_no_samples_is_refused_before_a_cache_is_begun(tmp_path: Path) -> None:
    source = digits(1)
    empty = ArraySource(source.images[:0], source.targets[:0], keys=[])
    with pytest.raises(DatasetError):
        ReplayedDataset(empty, RECIPE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("packed", [True, False])
def test_fault_24_a_batch_of_duplicate_and_unsorted_rows_is_exact(tmp_path: Path, packed: bool) -> None:
    cache = Synthetic(num_rows=2300)
    opened = open_cache(cache.build(tmp_path / "t.h5", packed=packed))
    draw = np.random.default_rng(24)
    for size in (1, 2, 256, 5000):
        rows = draw.integers(0, 2300, size)
        rows[size // 2 :] = rows[: size - size // 2]
        for view in (1, 0):
            assert np.array_equal(opened.read_encoded(rows, view).numpy(), cache.rows(view)[rows])


def test_too_many_open_shards_are_reported_as_such_and_not_as_damage(tmp_path: Path) -> None:
    path = Synthetic(num_rows=9000).build(tmp_path / "t.h5", packed=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(path / "index.h5", "rb") as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 10, hard))
        try:
            with pytest.raises(CacheError, match="too many open files: pack the cache") as caught:
                open_cache(path)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not isinstance(caught.value, CacheCorruptError)
