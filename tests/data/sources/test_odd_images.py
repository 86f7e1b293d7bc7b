"""Real odd image files, in build and training: the pixels that plain Pillow reads, or one line that names the file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageFile, features
from sklearn.datasets import load_sample_images

import kdkit
from kdkit.building.config import BuildConfig
from kdkit.data import FolderSource, create_source
from kdkit.errors import DatasetError
from kdkit.recipe import ViewRecipe

PHOTOGRAPH = Image.fromarray(load_sample_images().images[0][200:232, 200:240])
Encode = Callable[[], bytes]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    return saved(PHOTOGRAPH, "JPEG", exif=exif)


def animated(kind: str) -> bytes:
    frames = [PHOTOGRAPH.quantize(), PHOTOGRAPH.rotate(90).resize(PHOTOGRAPH.size).quantize()]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def wide_grey(kind: str) -> bytes:
    return saved(Image.fromarray(np.asarray(PHOTOGRAPH.convert("L")).astype(np.uint16) * 257), kind)


def twelve_bits() -> bytes:
    """A TIFF of 12 bits per pixel, as microscopes write it: Pillow reads it as 16 bits, but does not scale it."""
    grey = np.asarray(PHOTOGRAPH.convert("L")).astype(np.uint16) * 16
    height, width = grey.shape
    pairs = grey.reshape(height, width // 2, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8).tobytes()
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(packed)))
    directory = len(tags).to_bytes(2, "little")
    for tag, value in tags:
        directory += tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little")
        directory += value.to_bytes(4, "little")
    return b"II*\0" + (8 + len(packed)).to_bytes(4, "little") + packed + directory + bytes(4)


READ: dict[str, tuple[str, Encode]] = {
    "CMYK JPEG": ("jpg", lambda: saved(PHOTOGRAPH.convert("CMYK"), "JPEG")),
    "progressive JPEG": ("jpg", lambda: saved(PHOTOGRAPH, "JPEG", progressive=True)),
    "grey JPEG": ("jpeg", lambda: saved(PHOTOGRAPH.convert("L"), "JPEG")),
    "EXIF-rotated JPEG": ("jpg", turned),
    "PNG that is called JPEG": ("jpg", lambda: saved(PHOTOGRAPH, "PNG")),
    "palette": ("png", lambda: saved(PHOTOGRAPH.quantize(), "PNG")),
    "palette with a transparent colour": ("png", lambda: saved(PHOTOGRAPH.quantize(), "PNG", transparency=3)),
    "palette with transparency": ("png", lambda: saved(PHOTOGRAPH.quantize(), "PNG", transparency=bytes(range(256)))),
    "alpha": ("png", lambda: saved(PHOTOGRAPH.convert("RGBA").rotate(20), "PNG")),
    "grey with alpha": ("png", lambda: saved(PHOTOGRAPH.convert("LA"), "PNG")),
    "one bit": ("png", lambda: saved(PHOTOGRAPH.convert("1"), "PNG")),
    "GIF": ("gif", lambda: animated("GIF")),
    "WebP": ("webp", lambda: saved(PHOTOGRAPH, "WEBP", lossless=True)),
    "TIFF": ("tif", lambda: saved(PHOTOGRAPH, "TIFF")),
    "TIFF of two pages": ("tiff", lambda: animated("TIFF")),
    "CMYK TIFF": ("tiff", lambda: saved(PHOTOGRAPH.convert("CMYK"), "TIFF")),
    "BMP": ("bmp", lambda: saved(PHOTOGRAPH, "BMP")),
    "AVIF": ("avif", lambda: saved(PHOTOGRAPH, "AVIF")),
    "JPEG called jfif": ("jfif", lambda: saved(PHOTOGRAPH, "JPEG")),
}
SIXTEEN_BITS: dict[str, tuple[str, Encode]] = {
    "16-bit PNG": ("png", lambda: wide_grey("PNG")),
    "16-bit TIFF": ("tif", lambda: wide_grey("TIFF")),
    "12-bit TIFF": ("tif", twelve_bits),
}
REFUSED: dict[str, tuple[str, Encode]] = {
    "zero bytes": ("jpg", lambda: b""),
    "HTML that is called JPEG": ("jpg", lambda: b"<!DOCTYPE html><html><body>404</body></html>"),
    "32-bit TIFF": ("tif", lambda: saved(PHOTOGRAPH.convert("F"), "TIFF")),
    "Lab TIFF": ("tif", lambda: saved(PHOTOGRAPH.convert("L"), "TIFF")[:-40]),
    **{
        f"truncated {kind}": (end, lambda kind=kind, options=options: _half(saved(PHOTOGRAPH, kind, **options)))
        for kind, end, options in [
            ("JPEG", "jpg", {}),
            ("PNG", "png", {}),
            ("GIF", "gif", {}),
            ("WEBP", "webp", {"lossless": True}),
            ("TIFF", "tif", {}),
            ("BMP", "bmp", {}),
        ]
    },
}


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def source_of(root: Path, suffix: str, content: bytes) -> FolderSource:
    """Two classes: the odd image is the only one of the first."""
    for name, ending, held in (("a", suffix, content), ("b", "png", saved(PHOTOGRAPH, "PNG"))):
        (root / name).mkdir()
        (root / name / f"0.{ending}").write_bytes(held)
    return FolderSource(root)


def plain(content: bytes) -> np.ndarray:
    """The pixels that a plain reading by Pillow gives, uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(content)) as image:
        image.info.pop("transparency", None)
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("case", READ)
def test_the_pixels_are_those_of_a_plain_reading(tmp_path: Path, case: str) -> None:
    suffix, encode = READ[case]
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    content = encode()
    source = source_of(tmp_path, suffix, content)
    assert source.class_names == ["a", "b"]
    assert source[0][0].mode == "RGB"
    assert np.array_equal(np.asarray(source[0][0]), plain(content))


@pytest.mark.parametrize("case", SIXTEEN_BITS)
def test_of_more_than_8_bits_of_grey_the_upper_8_are_shown(tmp_path: Path, case: str) -> None:
    suffix, encode = SIXTEEN_BITS[case]
    source = source_of(tmp_path, suffix, encode())
    assert np.array_equal(np.asarray(source[0][0].convert("L")), np.asarray(PHOTOGRAPH.convert("L")))


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("tolerant", [False, True])
def test_what_is_no_whole_image_is_refused_by_name(
    tmp_path: Path, case: str, tolerant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)  # as some programs set it for everyone
    suffix, encode = REFUSED[case]
    with pytest.raises(DatasetError, match=rf"'a/0\.{suffix}' .*unreadable") as caught:
        source_of(tmp_path, suffix, encode())[0]
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


def test_odd_images_give_the_same_outputs_in_build_and_training_and_a_broken_one_is_one_line(tmp_path: Path) -> None:
    recipe = ViewRecipe.evaluation(32)
    data = tmp_path / "data"
    cases = {**READ, **SIXTEEN_BITS}
    for number, (suffix, encode) in enumerate(cases.values()):
        if suffix == "avif" and not features.check("avif"):
            continue
        (data / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (data / str(number % 2) / f"{number:02d}.{suffix}").write_bytes(encode())
    teacher = kdkit.create_teacher(timm.create_model("test_vit", num_classes=2, img_size=32))
    config = BuildConfig(codec="float32", num_workers=0)
    kdkit.build_cache(teacher, kdkit.open_dataset(data, recipe=recipe), tmp_path / "c.h5", config)
    dataset = kdkit.open_dataset(data, cache=tmp_path / "c.h5")
    cache = kdkit.open_cache(tmp_path / "c.h5", dataset)
    student = timm.create_model("test_vit", num_classes=2, img_size=32)
    loader = kdkit.create_loader(dataset, student, batch_size=len(dataset), num_workers=0, shuffle=False)
    (batch,) = loader
    live, cached = teacher(batch).logits, cache(batch).logits
    assert live is not None
    assert cached is not None
    torch.testing.assert_close(cached, live.log_softmax(dim=-1), rtol=0, atol=1e-5)
    (data / "0" / "00.jpg").write_bytes(b"<html>")
    loader = kdkit.create_loader(dataset, student, batch_size=4, num_workers=1, shuffle=False)
    with pytest.raises(DatasetError, match=r"^the image '0/00\.jpg' under .* is unreadable: .*it is a web page"):
        list(loader)
    with pytest.raises(DatasetError, match=r"the image '0/00\.jpg' under .* is unreadable") as caught:
        kdkit.build_cache(teacher, kdkit.open_dataset(data, recipe=recipe), tmp_path / "d.h5", config)
    assert "\n" not in str(caught.value)


def test_a_damaged_compressed_member_of_a_zip_is_refused_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.bmp", saved(PHOTOGRAPH, "BMP"))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[60:200] = bytes(reversed(content[60:200]))
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DatasetError, match=r"'a/0\.bmp' .*unreadable"):
        create_source(tmp_path / "a.zip")[0]
