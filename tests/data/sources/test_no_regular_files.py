"""Fault 33 in data: whatever stands where a table, an archive or an image is expected is never waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support import within

from kdkit.data import create_source
from kdkit.data.sources import table_file
from kdkit.data.sources.content import SampleContent
from kdkit.errors import DatasetError

PLACES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}
STRANGERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pointer of git-lfs": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "run git lfs pull",
    ),
    "zeros without an end": (lambda path: (path.touch(), os.truncate(path, 1 << 40)), ""),
}
DATA = ("it.csv", "it.tsv", "it.parquet", "it.zip", "it.tar", "folder/000.tar")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", DATA)
def test_fault_33_data_that_is_no_regular_file_is_refused_without_waiting(
    tmp_path: Path, name: str, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    PLACES[place](tmp_path / name)
    with within(30), pytest.raises(DatasetError, match=Path(name).name) as caught:
        create_source(tmp_path / "folder" if "/" in name else tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("name", DATA)
def test_fault_33_data_that_is_another_file_is_refused_at_once_in_one_line(
    tmp_path: Path, name: str, stranger: str
) -> None:
    (tmp_path / "folder").mkdir()
    make, text = STRANGERS[stranger]
    make(tmp_path / name)
    with within(30), pytest.raises(DatasetError, match=Path(name).name) as caught:
        create_source(tmp_path / "folder" if "/" in name else tmp_path / name)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fault_40_a_parquet_file_that_claims_to_unpack_to_more_than_a_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"path": ["a.png"]}), tmp_path / "it.parquet")
    monkeypatch.setattr(table_file, "_MAX_UNPACKED_BYTES", 10)
    with pytest.raises(DatasetError, match=r"it.parquet' cannot be read: it unpacks to \d+ bytes, expected at most 10"):
        create_source(tmp_path / "it.parquet")


@pytest.mark.parametrize("name", ["it", "it.yaml", "it.h5"])
def test_a_file_of_no_kind_of_data_is_called_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=f"{name}' is a file of no kind that kdkit reads: expected a folder"):
        create_source(tmp_path / name)


@pytest.mark.parametrize("place", PLACES)
def test_fault_33_an_image_of_a_table_that_is_no_regular_file_is_neither_decoded_nor_digested(
    tmp_path: Path, place: str
) -> None:
    PLACES[place](tmp_path / "a.png")
    (tmp_path / "it.csv").write_text("image,label\na.png,0\n")
    source = create_source(tmp_path / "it.csv")
    with within(30):
        with pytest.raises(DatasetError, match=f"'a.png'.* is unreadable: .*it is {place}, expected a regular file"):
            source[0]
        with pytest.raises(OSError, match=f"it is {place}"):
            SampleContent(source).read(0)


def test_a_name_that_no_file_can_have_is_one_line() -> None:
    with pytest.raises(DatasetError, match="cannot be read: File name too long"):
        create_source("x" * 5000)
