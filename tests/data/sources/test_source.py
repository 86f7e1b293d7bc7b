"""Sources: image folders and arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.datasets import ImageFolder

from kdkit.data import ArraySource, FolderSource, MappedSource
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


def pixels(source: FolderSource | MappedSource | ImageFolder, index: int = 0) -> Any:
    return np.asarray(source[index][0])


def save(folder: Path, image: Image.Image, name: str, **options: Any) -> FolderSource:
    (folder / "a").mkdir()
    image.save(folder / "a" / name, **options)
    return FolderSource(folder)


GREY = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
COLOURED = Image.fromarray(load_sample_images().images[0][200:264, 200:280])


@pytest.mark.parametrize(
    ("image", "name", "options"),
    [
        (GREY, "grey.png", {}),
        (GREY.convert("1"), "one bit.png", {}),
        (GREY.convert("LA"), "grey with alpha.png", {}),
        (COLOURED.convert("RGBA").rotate(20), "alpha.png", {}),
        (COLOURED.convert("CMYK"), "cmyk.jpg", {}),
        (COLOURED.quantize(), "palette.png", {}),
        (COLOURED.quantize(), "transparent colour.png", {"transparency": 3}),
        (COLOURED, "transparent.png", {"transparency": (1, 2, 3)}),
    ],
)
def test_the_colours_of_other_modes_are_torchvisions(
    tmp_path: Path, image: Image.Image, name: str, options: dict[str, Any]
) -> None:
    source = save(tmp_path, image, name, **options)
    assert source[0][0].mode == "RGB"
    assert np.array_equal(pixels(source), pixels(ImageFolder(str(tmp_path))))


def test_transparency_by_palette_is_left_out_without_a_warning(tmp_path: Path) -> None:
    source = save(tmp_path, COLOURED.quantize(), "a.png", transparency=bytes([0] * 128 + [255] * 128))
    assert np.array_equal(pixels(source), np.asarray(COLOURED.quantize().convert("RGB")))


def test_an_image_is_decoded_without_its_exif_orientation(tmp_path: Path) -> None:
    held = Image.Exif()
    held[0x0112] = 6  # to be turned by 90 degrees
    source = save(tmp_path, COLOURED, "a.jpg", exif=held)
    assert source[0][0].size == COLOURED.size
    assert np.array_equal(pixels(source), pixels(ImageFolder(str(tmp_path))))


def test_of_16_bits_of_grey_the_upper_8_are_shown(tmp_path: Path) -> None:
    values = np.arange(256).reshape(16, 16) * 257
    grey = np.repeat(np.asarray(GREY)[..., None], 3, axis=2)
    assert np.array_equal(pixels(save(tmp_path, Image.fromarray(values.astype(np.uint16)), "a.png")), grey)
    for order in "<>":
        assert np.array_equal(pixels(MappedSource([(Image.fromarray(values.astype(f"{order}u2")), 0)])), grey)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_32_bits_are_refused_by_name(dtype: Any) -> None:
    image = Image.fromarray(np.asarray(GREY).astype(dtype) * 257)
    with pytest.raises(DatasetError, match=r"'b' .*32-bit pixels"):
        MappedSource([(GREY, 0), (image, 0)], keys=["a", "b"])[1]


def test_a_transform_that_writes_to_its_image_leaves_the_datasets_as_it_is() -> None:
    kept = COLOURED.copy()
    MappedSource([(kept, 0)])[0][0].putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(kept), np.asarray(COLOURED))


def test_a_sample_without_a_label_has_the_target_minus_one() -> None:
    assert MappedSource([(COLOURED, None)])[0][1] == MappedSource([{"image": COLOURED, "label": None}])[0][1] == -1
