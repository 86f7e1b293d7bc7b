"""Images that are in memory already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from kdkit.data.sources.base import describe
from kdkit.data.sources.class_order import check_names, check_texts
from kdkit.data.sources.labels import class_index
from kdkit.errors import ShapeError


class ArraySource:
    """Images that are in memory already.

    Args:
        images: uint8 [N, H, W] or [N, H, W, 3].
        targets: class indices [N]; -1 for a sample without a label.
        keys: a unique key for each sample; its index by default.
        class_names: one name per class, if there are any.

    Raises:
        ShapeError: images are not uint8 of one of these shapes, or targets or keys are not N.
        DatasetError: keys or class names are no list of texts, or a class is named twice.
        LabelError: a target is not a whole number from -1, or there is no class of that index.
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
            raise ShapeError(f"{len(images)} images came with {len(targets)} targets: expected one target per image")
        self.images = images
        given = [str(i) for i in range(len(images))] if keys is None else check_texts(keys, "keys")
        self.keys: Sequence[str] = given
        if len(self.keys) != len(images):
            raise ShapeError(f"{len(images)} images came with {len(self.keys)} keys: expected one key per image")
        self.class_names: Sequence[str] | None = None if class_names is None else check_names(class_names)
        count = None if class_names is None else len(class_names)
        labels = zip(targets, self.keys, strict=True)
        self.targets = np.array([class_index(label, key, "the arrays", count) for label, key in labels], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]).convert("RGB"), int(self.targets[index])

    def __repr__(self) -> str:
        return describe(self, f"uint8 {list(self.images.shape)}")
