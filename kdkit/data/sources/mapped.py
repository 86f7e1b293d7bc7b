"""Any map-style dataset as a source: torchvision's, timm's, Hugging Face's, a subset, or one of the user's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset
from torch import Tensor
from torch.utils.data import IterableDataset, Subset
from torchvision.transforms.functional import to_pil_image

from kdkit.data.sources.base import UNREADABLE, as_rgb, decode, in_order, unreadable
from kdkit.errors import DatasetError

_ARROW_ROWS = 10_000


class MappedSource:
    """A dataset with a length whose items are (image, class index), or mappings with "image" and "label".

    An image is a PIL image, an array uint8 [H, W] or [H, W, 3], or a tensor uint8 [3, H, W]: the dataset must have no
    random transform of its own. timm's ImageDataset is read through its reader, since for an image that cannot be
    read it would return the next one.

    Keys are `keys`; else paths, where the dataset tells them (torchvision's `samples`, timm's `filenames()`); else the
    index. The index is an identity only as long as nothing is inserted, removed or re-ordered: two datasets of equal
    length then have equal keys, and the pixel hashes, which cover a part of the rows, are all that tells one from the
    other. Give keys where there are any.

    Args:
        dataset: has __len__ and __getitem__.
        keys: a unique identity for each sample.
        class_names: one name a class; by default what the dataset says in `classes` or `class_to_idx`.

    Raises:
        DatasetError: it streams, or its keys do not fit.
    """

    def __init__(
        self, dataset: Any, *, keys: Sequence[str] | None = None, class_names: Sequence[str] | None = None
    ) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise DatasetError(
                f"the dataset {type(dataset).__name__} is a stream, without length and ids: a view could not be found "
                "again, in the cache or at all; use the map-style form of the dataset, or write it to a folder"
            )
        self.dataset, self._rows = _without_subsets(dataset)
        self._process = os.getpid()
        if keys is None:
            known = _keys(self.dataset)
            keys = [known[row] for row in self._rows]
        self.keys: Sequence[str] = list(keys)
        if len(self.keys) != len(dataset):
            raise DatasetError(f"{len(dataset)} samples came with {len(self.keys)} keys: expected one key a sample")
        self.class_names: Sequence[str] | None = list(class_names) if class_names else _class_names(self.dataset)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        key, origin = self.keys[index], type(self.dataset).__name__
        if isinstance(self.dataset, ImageDataset):
            if self._process != os.getpid():
                _forget_open_tars(self.dataset.reader)
                self._process = os.getpid()
            try:
                stream, target = self.dataset.reader[self._rows[index]]
            except OSError as error:
                raise unreadable(key, origin, error) from None
            if target is not None and self.dataset.target_transform is not None:
                target = self.dataset.target_transform(target)
            return decode(stream, key, origin), -1 if target is None else int(target)
        item = self.dataset[self._rows[index]]
        image, target = (item["image"], item["label"]) if isinstance(item, Mapping) else item[:2]
        return _to_image(image, key, origin), -1 if target is None else int(target)


def _forget_open_tars(reader: Any) -> None:
    """After a fork: an open file shares its place with the parent's, and so with all other workers'."""
    state = getattr(reader, "tar_state", None)
    for tar in state.values() if isinstance(state, Mapping) else [] if state is None else [state]:
        for opened in (tar, *tar.children.values()):
            opened.reset()


def _without_subsets(dataset: Any) -> tuple[Any, Sequence[int]]:
    """The dataset that nested Subsets are of, and the rows of it that they leave."""
    rows: Sequence[int] = range(len(dataset))
    while isinstance(dataset, Subset):
        rows = [int(dataset.indices[row]) for row in rows]
        dataset = dataset.dataset
    return dataset, rows


def _keys(dataset: Any) -> list[str]:
    """The identities that a map-style dataset tells by itself; indices where it tells none."""
    if hasattr(getattr(dataset, "reader", None), "image_key"):
        paths = _arrow_paths(dataset.reader)
    elif isinstance(dataset, ImageDataset):
        paths = dataset.filenames()
    else:
        samples = getattr(dataset, "samples", None) or []
        paths = [sample[0] if isinstance(sample, (tuple, list)) else None for sample in samples]
    texts = [str(path) for path in paths if isinstance(path, (str, Path))]
    if len(texts) == len(dataset) and len(set(texts)) == len(texts):
        return _below_common_folder(texts)
    return [str(index) for index in range(len(dataset))]


def _class_names(dataset: Any) -> list[str] | None:
    """The class names that a map-style dataset tells by itself."""
    for holder in (dataset, getattr(dataset, "reader", None)):
        names = getattr(holder, "classes", None)
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            return list(names)
        if isinstance(indices := getattr(holder, "class_to_idx", None), dict) and indices:
            return in_order(indices)
    return None


def _arrow_paths(reader: Any) -> list[Any]:
    """Paths in a Hugging Face dataset, from their column alone: the images beside them are not touched."""
    table = reader.dataset.select_columns([reader.image_key]).with_format("arrow")
    paths: list[Any] = []
    for start in range(0, len(table), _ARROW_ROWS):
        column = table[start : start + _ARROW_ROWS].column(reader.image_key)
        paths += column.combine_chunks().field("path").to_pylist()
    return paths


def _below_common_folder(texts: Sequence[str]) -> list[str]:
    """Absolute paths without what they have in common, which changes from machine to machine."""
    paths = [Path(text) for text in texts]
    if not paths or not all(path.is_absolute() for path in paths):
        return [path.as_posix() for path in paths]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(root).as_posix() for path in paths]


def _to_image(image: Any, key: str, origin: str) -> Image.Image:
    if isinstance(image, Image.Image):
        try:
            rgb = as_rgb(image)
        except UNREADABLE as error:
            raise unreadable(key, origin, error) from None
        return rgb.copy() if rgb is image else rgb  # a transform may write to it, and the dataset may keep it
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        return Image.fromarray(image).convert("RGB")
    if isinstance(image, Tensor) and image.dtype == torch.uint8:
        converted: Image.Image = to_pil_image(image)
        return converted.convert("RGB")
    kind = f"{image.dtype} {type(image).__name__}" if hasattr(image, "dtype") else type(image).__name__
    raise DatasetError(
        f"the sample {key!r} is a {kind}, expected a PIL image or uint8 pixels: take the transform out of the dataset, "
        "kdkit makes the views"
    )
