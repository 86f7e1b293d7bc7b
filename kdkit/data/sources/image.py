"""Decoding of one image, and the formats that can be decoded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from kdkit.errors import UnreadableError
from kdkit.runtime.reading import open_binary

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""Exceptions that Pillow raises for damaged images and for images that it cannot convert."""

_BITS_PER_SAMPLE = 258
"""Number of a TIFF's tag."""

_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow recognises, but decodes only with the help of other programs, or not at all."""

UNSUPPORTED_SUFFIXES = frozenset(
    {".arw", ".avif", ".bpg", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic", ".heif", ".jp2", ".jxl"}
    | {".jxr", ".nef", ".orf", ".ps", ".raf", ".rw2", ".svg", ".webp", ".wmf"}
)
"""Suffixes of image files that are refused, unless this Pillow decodes them, so that no image vanishes."""


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of all formats that Pillow decodes here, lower case with their dot."""
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in known if name in Image.OPEN and name not in _NOT_DECODED)


def suffix_of(path: str) -> str:
    """The suffix of a path, lower case with its dot; empty if it has none."""
    stem, _, end = path.rpartition("/")[2].rpartition(".")
    return f".{end.lower()}" if stem else ""


def is_image(path: str) -> bool:
    """Whether a path has the suffix of an image that Pillow decodes here."""
    return suffix_of(path) in image_suffixes()


def decode_file(path: str | Path, key: str, origin: str) -> Image.Image:
    """Reads an RGB image from a file.

    Raises:
        DatasetError: the file cannot be read, is not an image, or is damaged.
    """
    try:
        with open_binary(path) as stream:
            return decode(stream, key, origin)
    except OSError as error:
        raise unreadable(key, origin, error) from None


def decode(stream: IO[bytes], key: str, origin: str) -> Image.Image:
    """Reads an RGB image from an open file, and closes the file.

    Unlike timm's ImageDataset, which returns the next image instead of an unreadable one, this raises an error that
    names the image: another image would be paired with the wrong row of teacher outputs.

    Raises:
        DatasetError: the file is not an image, or is damaged.
    """
    tolerated, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False  # grey pixels are not the image
    try:
        with stream, Image.open(stream) as image:
            image.load()
            return as_rgb(image)
    except UnidentifiedImageError:
        raise unreadable(key, origin, ValueError("its content is not an image that Pillow recognises")) from None
    except UNREADABLE as error:
        raise unreadable(key, origin, error) from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerated


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB; the same object if it is RGB already.

    Of grey of 12 or 16 bits the upper 8 bits are kept, as Pillow does for 16-bit colour; Pillow's `convert`, and so
    timm and torchvision, would make white of all values above 255. Everything else follows timm and torchvision:
    transparency is dropped, CMYK is converted without a profile, and the EXIF orientation is not applied.

    Raises:
        ValueError: the pixels have 32 bits, and the file does not state which value is white.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # the latter by older Pillows
        return Image.fromarray((np.asarray(image) >> _grey_bits(image) - 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"the white value of its 32-bit pixels ({image.mode}) is unknown: convert it to 8 or 16 bits")
    if "transparency" in image.info:  # Pillow would warn that transparency is lost, as intended here
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _grey_bits(image: Image.Image) -> int:
    """Bits of the white value of grey in 16 bits: fewer than 16 in a TIFF of 12 bits, which Pillow does not scale."""
    tags: Any = getattr(image, "tag_v2", {})
    return int(max(tags.get(_BITS_PER_SAMPLE, (16,))))


def unreadable(key: str, origin: str, error: Exception) -> UnreadableError:
    """The error for a sample that cannot be read."""
    return UnreadableError(f"the image {key!r} under {origin!r} is unreadable: {error}")
