"""Where images come from: anything with a length, an (image, target) for each index, and a key for each sample.

A key is a sample's identity: the path relative to the dataset's root, or the dataset's own id. Replay seeds and cache
rows hang on it, so a re-ordered folder keeps its views and its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from timm.data.readers import create_reader

from kdkit.errors import DatasetError, ShapeError


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


class FolderSource:
    """A folder of class folders of images, as timm reads it.

    Unlike timm's ImageDataset, an image that cannot be read is an error that names it: skipping to the next one would
    pair a sample with another sample's teacher output.

    Args:
        root: folder with one sub-folder a class.

    Raises:
        DatasetError: the folder does not exist or holds no image.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DatasetError(f"there is no image folder at {str(root)!r}: expected a folder with one folder a class")
        try:
            self._reader = create_reader("folder", root=str(root))
        except RuntimeError as error:
            raise DatasetError(
                f"the image folder {str(root)!r} holds no images: expected {root!s}/CLASS/IMAGE.jpg or the like"
            ) from error
        self.keys: Sequence[str] = [Path(name).as_posix() for name in self._reader.filenames()]
        names: dict[str, int] = self._reader.class_to_idx
        self.class_names: Sequence[str] | None = sorted(names, key=names.__getitem__)
        for name in self.class_names:
            if not name or not name.isprintable():
                what = "images outside any class folder" if not name else f"a class folder with the name {name!a}"
                raise DatasetError(f"the image folder {str(root)!r} holds {what}: expected CLASS/IMAGE.jpg or the like")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        try:
            stream, target = self._reader[index]
            with stream, Image.open(stream) as image:
                return image.convert("RGB"), int(target)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DatasetError(
                f"the image {self.keys[index]!r} under {str(self.root)!r} is unreadable: {error}"
            ) from None


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
