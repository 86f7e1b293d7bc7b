"""Sources: image folders and arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from kdkit.data import ArraySource, FolderSource
from kdkit.errors import DatasetError, ShapeError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Crops of two real photographs in class folders with awkward names."""
    for name, photograph in zip(("tëmple 寺", "flower"), load_sample_images().images, strict=True):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.fromarray(photograph[index * 50 : index * 50 + 64, :80]).save(tmp_path / name / f"a b{index}.png")
    return tmp_path


def test_keys_are_paths_below_the_root_and_classes_are_folders(folder: Path) -> None:
    source = FolderSource(folder)
    assert len(source) == 6
    assert source.keys[0] == "flower/a b0.png"
    assert source.class_names == ["flower", "tëmple 寺"]
    image, target = source[5]
    assert image.mode == "RGB"
    assert image.size == (80, 64)
    assert target == 1


def test_an_unreadable_image_is_an_error_that_names_it(folder: Path) -> None:
    (folder / "flower" / "a b1.png").write_bytes(b"not an image")
    source = FolderSource(folder)
    with pytest.raises(DatasetError, match=r"flower/a b1\.png"):
        source[1]
    assert source[2][1] == 0


def test_a_cut_image_is_an_error_that_names_it(folder: Path) -> None:
    path = folder / "flower" / "a b1.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DatasetError, match=r"flower/a b1\.png"):
        FolderSource(folder)[1]


def test_missing_and_empty_folders_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no image folder at"):
        FolderSource(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="holds no images"):
        FolderSource(tmp_path)


def test_a_link_to_nothing_is_an_error_that_names_it(folder: Path) -> None:
    (folder / "flower" / "z.png").symlink_to(folder / "nothing")
    with pytest.raises(DatasetError, match=r"flower/z\.png"):
        FolderSource(folder)[3]


def test_images_outside_class_folders_are_refused(folder: Path) -> None:
    (folder / "flower" / "a b0.png").rename(folder / "stray.png")
    with pytest.raises(DatasetError, match="outside any class folder"):
        FolderSource(folder)


def test_arrays_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match="float64"):
        ArraySource(np.zeros((2, 8, 8)), [0, 1])  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="1 targets"):
        ArraySource(np.zeros((2, 8, 8), np.uint8), [0])
    with pytest.raises(ShapeError, match="1 keys"):
        ArraySource(np.zeros((2, 8, 8), np.uint8), [0, 1], keys=["a"])
    assert ArraySource(np.zeros((2, 8, 8, 3), np.uint8), [0, 1])[1][0].mode == "RGB"
