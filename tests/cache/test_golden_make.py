"""cache/golden/make.py writes the golden files again, byte for byte, through the public writer."""

from __future__ import annotations

import runpy
from pathlib import Path

import h5py
import pytest
from commands import ROOT

GOLDEN = ROOT / "cache" / "golden"
# lowrank is fitted by a singular value decomposition, whose last digits differ between machines.
SAME_EVERYWHERE = sorted(file.name for file in GOLDEN.glob("v1-*") if file.stem != "v1-lowrank")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    runpy.run_path(str(GOLDEN / "make.py"))["main"](folder)
    return folder


def shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Path within the file -> shape and dtype of each dataset."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = (item.shape, str(item.dtype))

    with h5py.File(path) as file:
        file.visititems(note)
    return found


@pytest.mark.parametrize("name", SAME_EVERYWHERE)
def test_a_golden_file_is_made_again_byte_for_byte(made: Path, name: str) -> None:
    assert (made / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_all_golden_files_are_made(made: Path) -> None:
    assert sorted(file.name for file in made.iterdir()) == sorted(file.name for file in GOLDEN.glob("v1-*"))
    assert shapes(made / "v1-lowrank.h5") == shapes(GOLDEN / "v1-lowrank.h5")
