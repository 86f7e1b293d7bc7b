"""Faults 33, 34, 35 and 44: files made, or put together, by somebody else."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import malice
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support import tiny_model, within
from synthetic import Synthetic

from kdkit import CacheSpec, CacheWriter, create_teacher, open_cache
from kdkit.cache import create_codec
from kdkit.cache.export import export_cache
from kdkit.cache.format.keys import pack_keys, unpack_keys
from kdkit.cache.places import pack_cache
from kdkit.cli import main
from kdkit.config import TeacherConfig
from kdkit.errors import CacheCorruptError, ConfigError, KdkitError
from kdkit.importers._array_file import open_arrays
from kdkit.resolve import resolve_teacher
from kdkit.teachers import load_card

CPU = torch.device("cpu")
CACHE = Synthetic(num_rows=2100, num_views=2)


@pytest.fixture(autouse=True)
def _no_wait() -> Iterator[None]:
    """Whoever opens a pipe waits for ever: then the test fails instead."""
    with within(60):
        yield


NAMES = [
    name for name in malice.PACKED if "name" in name and name not in ("a name twice", "two names for the same bytes")
]


@pytest.mark.parametrize("name", NAMES)
def test_fault_33_no_name_in_the_table_of_checksums_leads_out_of_the_file(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "bait.h5")
    made = malice.make_packed(tmp_path, tmp_path / "bait.h5", name)[name]
    with pytest.raises(CacheCorruptError, match=r"000\.h5"):
        open_cache(made)


OPENERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a cache": ("x.h5", open_cache),
    "a card": ("x.yaml", load_card),
    "a class map": (
        "x.json",
        lambda path: resolve_teacher(TeacherConfig(model="test_resnet", class_map=str(path)), CPU),
    ),
    "a checkpoint": ("x.pth", lambda path: create_teacher(tiny_model(), checkpoint=path)),
    "weights": ("x.safetensors", lambda path: create_teacher(tiny_model(), checkpoint=path)),
    **{f"arrays in {suffix}": (f"x.{suffix}", open_arrays) for suffix in ("npy", "npz", "safetensors")},
}
PLACES: dict[str, Callable[[Path], Any]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: None,
    "a pointer of git-lfs": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", OPENERS)
def test_fault_33_every_opener_refuses_what_is_no_regular_file_without_waiting(
    tmp_path: Path, kind: str, place: str
) -> None:
    name, open_it = OPENERS[kind]
    PLACES[place](tmp_path / name)
    with pytest.raises(KdkitError, match=name) as caught:
        open_it(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert ("run git lfs pull" in str(caught.value)) == ("git-lfs" in place)


def other_cache(folder: Path, *, with_field: bool) -> Path:
    """An unpacked cache, in which a shard was replaced by that of another cache with equal metadata."""
    path, other = folder / "t.h5", folder / "other.h5"
    CACHE.build(path, packed=False)
    writer = CACHE.start(other)
    with writer:
        for shard in writer.missing():
            pixels = np.asarray([row * 3 + shard.view for row in _hashed(shard.start, shard.stop)], "<u4")
            writer.seal(shard, {"logits": CACHE.rows(shard.view, shard.start, shard.stop)[::-1].copy()}, pixels)
        writer.finish(pack=False)
    name = "v0001-r0000001000"
    shutil.copy(folder / "other.h5.parts" / f"{name}.h5", folder / "t.h5.parts" / f"{name}.h5")
    if not with_field:  # as an older kdkit wrote it
        for entry in (folder / "t.h5.parts").glob("*.json"):
            fields = json.loads(entry.read_text())
            del fields["arrays_crc32"]
            entry.write_text(json.dumps(fields))
    return path


def _hashed(start: int, stop: int) -> list[int]:
    return [row for row in range(start, stop) if row < 1024 or row % 64 == 0]


def use(path: Path) -> None:
    cache = open_cache(path)
    cache.read_encoded(np.array([1500]), 1)


USES: dict[str, Callable[[Path], object]] = {
    "read": use,
    "verify": lambda path: open_cache(path).verify(),
    "pack": pack_cache,
    "resume": lambda path: CACHE.build(path),
}


@pytest.mark.parametrize("with_field", [True, False])
@pytest.mark.parametrize("name", USES)
def test_fault_34_a_shard_of_another_cache_of_equal_metadata_is_refused(
    tmp_path: Path, name: str, with_field: bool
) -> None:
    path = other_cache(tmp_path, with_field=with_field)
    with pytest.raises(CacheCorruptError, match=r"v0001-r0000001000|view 1, rows 1000"):
        USES[name](path)


def test_fault_34_the_other_rows_of_an_older_folder_are_read_as_ever(tmp_path: Path) -> None:
    path = other_cache(tmp_path, with_field=False)
    rows = np.array([3, 999, 2050])
    assert np.array_equal(open_cache(path).read_encoded(rows, 1).numpy(), CACHE.rows(1)[rows])


def test_fault_35_keys_are_counted_before_they_are_split() -> None:
    for joined, num_rows in ((bytes(40 << 20), 100_000), (b"a" * (8 << 20), 10), (b"\0" * 9, 11), (b"", 2)):
        packed = np.frombuffer(zlib.compress(joined, 9), "u1")
        tracemalloc.start()
        with pytest.raises(CacheCorruptError, match=f"does not hold the expected {num_rows} keys"):
            unpack_keys(packed, num_rows)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
        tracemalloc.stop()


@pytest.mark.parametrize("keys", [[], [""], ["a"], ["a", "", "é\udc80"], [str(n) * 9 for n in range(300_000)]])
def test_fault_35_what_is_packed_is_unpacked(keys: list[str]) -> None:
    assert unpack_keys(pack_keys(keys), len(keys)) == keys


def keyed(path: Path, keys: list[str]) -> Path:
    spec = CacheSpec(
        keys=keys,
        num_views=1,
        codecs={"logits": create_codec("float32", 6)},
        teacher={"name": "none", "dtype": "torch.float32", "weights_sha256": "0" * 64},
        recipe={"size": 8},
        class_names=None,
    )
    with CacheWriter.create(path, spec) as writer:
        for shard in writer.missing():
            writer.write(shard, {"logits": np.random.default_rng(0).normal(size=(shard.num_rows, 6)).astype("f4")})
        return writer.finish()


def test_fault_35_one_key_of_megabytes_is_no_export_of_gigabytes(tmp_path: Path) -> None:
    path = keyed(tmp_path / "t.h5", ["k" * 3_000_000, *map(str, range(999))])
    tracemalloc.start()
    with pytest.raises(ConfigError, match="3,000,000 characters"):
        export_cache(path, tmp_path / "out.npz")
    export_cache(path, tmp_path / "out.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
    assert [place.name for place in sorted(tmp_path.iterdir())] == ["out.safetensors", "t.h5"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_fault_35_an_export_holds_no_more_than_a_chunk_and_is_what_the_cache_decodes_to(
    tmp_path: Path, suffix: str
) -> None:
    cache = open_cache(CACHE.build(tmp_path / "t.h5"))
    (tmp_path / f".out{suffix}.{'0' * 12}.tmp").touch()  # of an export that was killed
    output = export_cache(tmp_path / "t.h5", tmp_path / f"out{suffix}", view=1)
    expected = cache.codecs["logits"].decode(cache.read_encoded(np.arange(2100), 1)).half().numpy()
    found = dict(np.load(output)) if suffix == ".npz" else load_file(output)
    assert np.array_equal(found["log_probabilities"], expected)
    assert found.get("keys", np.array(CACHE.keys)).tolist() == CACHE.keys
    assert sorted(place.name for place in tmp_path.iterdir()) == [f"out{suffix}", "t.h5"]


def test_fault_44_codec_arrays_that_decode_to_infinity_are_refused(tmp_path: Path) -> None:
    codec = create_codec("lowrank", 10, row_bytes=6)
    codec = codec.fit(torch.randn(64, 10, generator=torch.Generator().manual_seed(0)))
    arrays = {name: array.copy() for name, array in codec.arrays.items()}
    for name, value in (("mean", 3e38), ("step", 3e38), ("basis", 6e4)):
        odd = {**arrays, name: np.full_like(arrays[name], value)}
        if name == "basis":
            odd["step"] = np.full_like(arrays["step"], 1e30)
        with pytest.raises(ConfigError, match="decode to logits up to"):
            create_codec("lowrank", 10, row_bytes=6).with_arrays(odd)


def test_fault_44_a_command_shows_the_names_that_a_file_brings_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = dataclasses.replace(CACHE.spec, teacher={**CACHE.spec.teacher, "name": "bad\x1b]0;title\x07\u202ename"})
    with CacheWriter.create(tmp_path / "t.h5", spec) as writer:
        for shard in writer.missing():
            CACHE.seal(writer, shard)
        writer.finish()
    assert main(["cache", "info", str(tmp_path / "t.h5")]) == 0
    shown = capsys.readouterr().out
    assert "bad\\x1b]0;title\\x07\\u202ename" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


HEADERS: dict[str, Any] = {
    "a list": [1],
    "a number": 5,
    "a tensor that is a list": {"a": []},
    "a tensor without offsets": {"a": {"dtype": "F32", "shape": [1]}},
    "an offset as text": {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}},
    "one offset": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
    "an offset below zero": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
    "an offset beyond the file": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [1 << 40, (1 << 40) + 4]}},
    "a side below zero": {"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}},
    "a side as a fraction": {"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}},
    "a huge shape": {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
    "a dtype that is a list": {"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
    "an unknown dtype": {"a": {"dtype": "object", "shape": [1], "data_offsets": [0, 4]}},
    "offsets of another size": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2]}},
    "keys that are a number": {"__metadata__": {"keys": 5}},
    "keys that are no JSON": {"__metadata__": {"keys": "["}},
    "keys of numbers": {"__metadata__": {"keys": "[1]"}},
    "one key of megabytes": {"__metadata__": {"keys": json.dumps(["k" * 4_000_000, *map(str, range(1000))])}},
}


@pytest.mark.parametrize("name", [*HEADERS, "deep", "a long header", "an empty file"])
def test_fault_41_an_odd_header_of_safetensors_is_one_line(tmp_path: Path, name: str) -> None:
    content = {"deep": b"[" * 100_000, "an empty file": b""}.get(name, json.dumps(HEADERS.get(name, {})).encode())
    length = (1 << 60) if name == "a long header" else len(content)
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"" if name == "an empty file" else length.to_bytes(8, "little") + content + bytes(4))
    with pytest.raises(KdkitError, match=r"x\.safetensors") as caught:
        open_arrays(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400


def test_fault_33_hdf5_is_given_the_file_that_was_checked_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe is put in the file's place after the check: HDF5 does not meet it."""
    path = CACHE.build(tmp_path / "t.h5")
    real = h5py.File

    def swap(name: str, *arguments: Any, **options: Any) -> h5py.File:
        if path.is_file():
            path.rename(tmp_path / "moved.h5")
            os.mkfifo(path)
        return real(name, *arguments, **options)

    monkeypatch.setattr(h5py, "File", swap)
    assert open_cache(path).num_rows == 2100
