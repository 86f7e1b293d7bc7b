"""Where images come from: anything with a length, an (image, target) for each index, and a key for each sample.

A key is a sample's identity: the path relative to the dataset's root, or the dataset's own id. Replay seeds and cache
rows hang on it, so a re-ordered folder keeps its views and its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image

from kdkit.errors import DatasetError, ShapeError

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for damaged images and for those it cannot convert."""


class ImageSource(Protocol):
    """A map-style dataset of PIL images whose samples have keys."""

    keys: Sequence[str]
    class_names: Sequence[str] | None

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """The RGB image and the class index of one sample."""
        ...


class ArraySource:
    """Images that are in memory already.

    Args:
        images: uint8 [N, H, W] or [N, H, W, 3].
        targets: class indices [N].
        keys: a unique identity for each sample; its index by default.
        class_names: one name a class, if there are any.
    """

    def __init__(
        self,
        images: np.ndarray[Any, np.dtype[np.uint8]],
        targets: Sequence[int] | np.ndarray[Any, Any],
        *,
        keys: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3):
            raise ShapeError(f"images must be uint8 [N, H, W] or [N, H, W, 3], got {images.dtype} {list(images.shape)}")
        if len(targets) != len(images):
            raise ShapeError(f"{len(images)} images came with {len(targets)} targets: expected one target an image")
        self.images = images
        self.targets = np.asarray(targets, dtype=np.int64)
        self.keys: Sequence[str] = [str(i) for i in range(len(images))] if keys is None else list(keys)
        if len(self.keys) != len(images):
            raise ShapeError(f"{len(images)} images came with {len(self.keys)} keys: expected one key an image")
        self.class_names: Sequence[str] | None = None if class_names is None else list(class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]).convert("RGB"), int(self.targets[index])


def decode(stream: IO[bytes], key: str, origin: str) -> Image.Image:
    """The RGB image in an open file, which is closed.

    Unlike in timm's ImageDataset, an image that cannot be read is an error that names it: to skip to the next one would
    be to pair a sample with another sample's teacher output.

    Raises:
        DatasetError: it is no image, or a damaged one.
    """
    try:
        with stream, Image.open(stream) as image:
            image.load()
            return as_rgb(image)
    except UNREADABLE as error:
        raise unreadable(key, origin, error) from None


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in 8 bits of red, green and blue; itself, where it is that already.

    Of 16 bits of grey the upper 8 are taken, as Pillow does for 16 bits of colour; its `convert`, and so timm and
    torchvision, would make white of all above 255. The rest is what these do: transparency is left out, CMYK converted
    without a profile, and the orientation that a camera notes is not applied.

    Raises:
        ValueError: pixels have 32 bits, and nothing says which of their values is white.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # the latter by older Pillows
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"nothing says which value of its 32-bit pixels ({image.mode}) is white: make it 8 or 16 bits")
    if "transparency" in image.info:  # Pillow would warn of what is meant to happen
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def unreadable(key: str, origin: str, error: Exception) -> DatasetError:
    """What is said about a sample that cannot be read."""
    return DatasetError(f"the image {key!r} under {origin!r} is unreadable: {error}")


def checked_class_names(names: Sequence[str], origin: str) -> Sequence[str]:
    """The names of class folders; refuses none and unprintable ones.

    Raises:
        DatasetError: images lie outside any class folder, or a name cannot be printed.
    """
    for name in names:
        if name in ("", ".") or not name.isprintable():
            what = "images outside any class folder" if name in ("", ".") else f"a class folder with the name {name!a}"
            raise DatasetError(f"{origin!r} holds {what}: expected CLASS/IMAGE.jpg or the like")
    return list(names)


def in_order(class_to_idx: dict[str, int]) -> list[str]:
    """Class names by their index."""
    return sorted(class_to_idx, key=class_to_idx.__getitem__)
