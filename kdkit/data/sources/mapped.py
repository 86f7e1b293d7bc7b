"""Any map-style dataset as a source: torchvision's, timm's, Hugging Face's, a subset, or a custom one."""

from __future__ import annotations

import io
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

from kdkit.data.sources.base import Columns, class_index, describe
from kdkit.data.sources.hugging_face import HuggingFaceTable, arrow_column, is_hugging_face
from kdkit.data.sources.image import UNREADABLE, as_rgb, decode, decode_file, unreadable
from kdkit.data.sources.listing import natural_order
from kdkit.errors import DatasetError


class MappedSource:
    """A dataset with a length whose items are (image, class index), or mappings of an image and a label.

    An image is a PIL image, an array uint8 [H, W] or [H, W, 3], or a tensor uint8 [3, H, W]: the dataset must have no
    random transform of its own. timm's ImageDataset is read through its reader, because it would return the next image
    instead of an unreadable one. A label of None means no label (target -1).

    Keys are `keys`; else paths, if the dataset has unique ones (torchvision's `samples`, timm's `filenames()`, the
    image column of a Hugging Face dataset); else the index. The index identifies a sample only as long as nothing is
    inserted, removed or re-ordered: two datasets of equal length then have equal keys, and only the pixel hashes, which
    cover a part of the rows, tell them apart. Give keys if there are any.

    Args:
        dataset: has __len__ and __getitem__.
        keys: a unique key for each sample.
        class_names: one name per class; by default the dataset's `classes` or `class_to_idx`, or the names in the
            features of a Hugging Face dataset.
        image_column: name of the image in items that are mappings; `image` by default.
        label_column: name of the label in items that are mappings; `label` by default.

    Raises:
        DatasetError: it streams, its keys do not fit, or the order of its classes is not fixed.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        keys: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        _check_map_style(dataset)
        self.dataset, self._rows = _without_subsets(dataset)
        self._columns = Columns(image_column, label_column)
        if is_hugging_face(self.dataset):
            self.dataset = HuggingFaceTable(self.dataset, self._columns)
        self._process = os.getpid()
        if keys is None:
            known = _keys(self.dataset)
            keys = [known[row] for row in self._rows]
        self.keys: Sequence[str] = list(keys)
        if len(self.keys) != len(dataset):
            raise DatasetError(f"{len(dataset)} samples came with {len(self.keys)} keys: expected one key per sample")
        self.class_names: Sequence[str] | None = list(class_names) if class_names else _class_names(self.dataset)
        labels = self.dataset.targets if isinstance(self.dataset, HuggingFaceTable) else None
        self.targets: Sequence[int] | None = None if labels is None else [labels[row] for row in self._rows]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, target = self.load(index)
        return image, class_index(target, self.keys[index])

    def load(self, index: int) -> tuple[Image.Image, Any]:
        """The RGB image of one sample, and its label as the dataset has it."""
        key, origin = self.keys[index], type(self.dataset).__name__
        if isinstance(self.dataset, ImageDataset):
            self.reopen_after_fork()
            try:
                stream, target = self.dataset.reader[self._rows[index]]
            except OSError as error:
                raise unreadable(key, origin, error) from None
            if target is not None and self.dataset.target_transform is not None:
                target = self.dataset.target_transform(target)
            return decode(stream, key, origin), target
        image, target = self._item(self._rows[index], key)
        return _to_image(image, key, origin), target

    def __repr__(self) -> str:
        return describe(self, type(self.dataset).__name__)

    def reopen_after_fork(self) -> None:
        """Called before timm's reader is used, whose open tars would share their position with another process."""
        if self._process != os.getpid():
            _forget_open_tars(self.dataset.reader)
            self._process = os.getpid()

    def _item(self, row: int, key: str) -> tuple[Any, Any]:
        item = self.dataset[row]
        if not isinstance(item, Mapping):
            return item[0], item[1]
        image, label = self._columns.image or "image", self._columns.label or "label"
        for name in (image, label):
            if name not in item:
                raise DatasetError(f"the sample {key!r} has no {name!r} among {', '.join(map(str, item))}")
        return item[image], item[label]


def _check_map_style(dataset: Any) -> None:
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise DatasetError(
            f"the dataset {name} is a stream, without length and ids, so a view could not be drawn again: use the "
            "map-style form of the dataset, or write it to a folder"
        )
    if isinstance(dataset, Mapping):
        raise DatasetError(f"the dataset is a {name} of {', '.join(map(str, dataset))}: give one of these")


def _forget_open_tars(reader: Any) -> None:
    """Closes open tars after a fork, because they share their file position with the parent's and other workers'."""
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
    """The paths of a map-style dataset's samples where they are unique, else indices."""
    if isinstance(dataset, HuggingFaceTable):
        paths = dataset.paths
    elif hasattr(getattr(dataset, "reader", None), "image_key"):
        paths = arrow_column(dataset.reader.dataset, dataset.reader.image_key, "path")
    elif isinstance(dataset, ImageDataset):
        paths = dataset.filenames()
    else:
        samples = getattr(dataset, "samples", None) or []
        paths = [sample[0] if isinstance(sample, (tuple, list)) else None for sample in samples]
    texts = [str(path) for path in paths if isinstance(path, (str, Path))]
    if len(texts) == len(dataset) and len(set(texts)) == len(texts):
        return below_common_folder(texts)
    return [str(index) for index in range(len(dataset))]


def _class_names(dataset: Any) -> list[str] | None:
    """The class names that a map-style dataset has, by their index.

    Raises:
        DatasetError: timm's reader has classes whose order differs from process to process.
    """
    for holder in (dataset, getattr(dataset, "reader", None)):
        names = getattr(holder, "classes", None)
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            return list(names)
        if isinstance(indices := getattr(holder, "class_to_idx", None), dict) and indices:
            names = sorted(indices, key=indices.__getitem__)
            if isinstance(dataset, ImageDataset) and len({str(natural_order(name)[0]) for name in names}) < len(names):
                raise DatasetError(
                    "timm orders class names by chance where only case or leading zeros differ: read the images "
                    "with kdkit.data.FolderSource or TarSource"
                )
            return names
    return None


def below_common_folder(texts: Sequence[str]) -> list[str]:
    """Absolute paths without the folder that all have in common, which differs from machine to machine."""
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
    if isinstance(image, Mapping) and {"bytes", "path"} <= image.keys():  # undecoded, of a Hugging Face dataset
        if image["bytes"] is not None:
            return decode(io.BytesIO(image["bytes"]), key, origin)
        return decode_file(Path(str(image["path"])), key, origin)
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
