"""Fault 33 in data: whatever stands where a table, an archive or an image is expected is never waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support import within

from kdkit.data import create_source
from kdkit.data.sources.content import SampleContent
from kdkit.errors import DatasetError

PLACES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
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
