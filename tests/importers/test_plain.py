"""Files of torch.save that were made to harm, or hold more than plain values: nothing of them is run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_caches import Keys, write_ml_dr

from kdkit.errors import DatasetError
from kdkit.importers import import_fkd, import_mldr
from kdkit.importers._plain import PlainArray, read_plain


class Runs:
    """Unpickled by anything that calls what a pickle names, it makes a file."""

    def __init__(self, bait: Path) -> None:
        self.bait = bait

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.bait),)


class Named:
    """Reduces to any call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def saved(value: Any, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, pickle_protocol=protocol)
    return stream.getvalue()


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED, name: str = "x/data.pkl") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr(name, pickled)
    return stream.getvalue()


@pytest.mark.parametrize("protocol", [2, 4])
def test_numbers_texts_and_containers_come_back(protocol: int) -> None:
    value = (3, [{"params": [None, True, 0.5, (1, 2)], "name": "x"}], np.float64(0.25), np.int64(-7), b"raw")
    assert read_plain(saved(value, protocol), "x") == (3, value[1], 0.25, -7, b"raw")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("dtype", ["bool", "int64", "float16", "float32", "uint8"])
def test_arrays_come_back(protocol: int, dtype: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for array in (values, np.asfortranarray(values), values[:, :0], np.array(values[0, 0, 1])):
        (found,) = read_plain(saved([array], protocol), "x")
        assert isinstance(found, PlainArray)
        assert found.values.dtype == array.dtype
        assert np.array_equal(found.values, array)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_a_function_runs_no_code(protocol: int, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'posix\.mkdir'"):
        read_plain(saved([Runs(tmp_path / "ran")], protocol), "0.pth.tar")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [
        Named(eval, "1"),
        Named(getattr, 1, "real"),
        Named(np.frombuffer, b"12345678"),
        Named(np.ndarray, (1 << 40,)),
        Named(np.dtype, "O"),
        Named(bytearray, 1 << 40),
        np.array([{}], dtype=object),
        np.zeros(2, dtype=[("a", "f4")]),
        np.zeros(2, dtype=">f4"),
        np.array(["text"]),
        torch.zeros(2),
        complex(1, 2),
        {1, 2},
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_but_plain_values_is_refused_in_one_line(value: Any) -> None:
    if isinstance(value, set):
        assert read_plain(saved([value], 4), "x") == [value]  # a set of numbers is made by the pickle machine itself
        return
    with pytest.raises(DatasetError, match=r"x holds .*not read|x is damaged") as error:
        read_plain(saved([value]), "x")
    assert "\n" not in str(error.value)


def test_a_pickled_array_that_claims_more_than_its_bytes_is_refused() -> None:
    honest = saved([np.arange(6, dtype=np.int64)])
    with zipfile.ZipFile(io.BytesIO(honest)) as file:
        pickled = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    assert pickled.count(b"K\x06\x85") == 1  # the shape (6,)
    with pytest.raises(DatasetError, match="48 bytes for the shape"):
        read_plain(archive(pickled.replace(b"K\x06\x85", b"K\x40\x85")), "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zlib.compress(pickle.dumps([1])), "joblib"),
        (pickle.dumps([1]), "no zip"),
        (b"", "no zip"),
        (b"PK\x03\x04 and nothing else", "damaged"),
        (archive(pickle.dumps([1]), zipfile.ZIP_DEFLATED), "compressed"),
        (archive(pickle.dumps([1]), name="data.pkl"), "0 members"),
        (archive(b"\x80\x04["), "the unknown instruction 0x5b"),
        (archive(b"\x80\x04]" + b"\x94" * 10 + b"("), "damaged"),
        (archive(b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000), "damaged"),
        (archive(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x."), "an argument of 1,099,511,627,776 bytes"),
        (archive(b"\x80\x04B" + struct.pack("<I", 1 << 31) + b"x."), "an argument of 2,147,483,648 bytes"),
        (archive(b"\x80\x02]r" + struct.pack("<I", 1 << 28) + b"."), "a memo number"),
        (archive(b"]p999999999\n."), "an instruction without end"),
        (archive(b"I1"), "an instruction without end"),
        (archive(b"\x80\x04\x8a\xff" + b"\x01" * 255 + b"."), "an argument of 255 bytes"),
        (archive(b"\x80\x02" + b"]" * ((1 << 21) + 1) + b"."), "more than 2,097,152 instructions"),
        (archive(b"\x80\x02\x82\x01."), "damaged"),
    ],
)
def test_what_torch_save_does_not_write_is_refused_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as error:
        read_plain(content, "0.pth.tar")
    assert "\n" not in str(error.value)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "foreign", 2)
    with open(folder / "1.pth.tar", "ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(DatasetError, match=r"1\.pth\.tar.*1,073,741,824 bytes"):
        import_mldr(folder, Keys(["a/0.png", "a/1.png"]), tmp_path / "teacher.h5")


def test_an_import_of_a_malicious_file_runs_no_code_and_names_it(tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "foreign", 2)
    torch.save((1, [{"params": Runs(tmp_path / "ran"), "prob": ([1.0], [0])}]), folder / "1.pth.tar")
    with pytest.raises(DatasetError, match=r"1\.pth\.tar"):
        import_mldr(folder, Keys(["a/0.png", "a/1.png"]), tmp_path / "teacher.h5")
    (tmp_path / "fkd/a").mkdir(parents=True)
    torch.save([Runs(tmp_path / "ran")] * 3, tmp_path / "fkd/a/0.tar")
    with pytest.raises(DatasetError, match=r"a/0\.tar"):
        import_fkd(tmp_path / "fkd", Keys(["a/0.png"]), tmp_path / "teacher.h5")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "teacher.h5").exists()
