"""Any map-style dataset as a source: torchvision's, timm's, Hugging Face's, a subset, or a custom one."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Mapping, Sequence
from operator import is_not
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset
from torchvision.transforms.functional import to_pil_image

from kdkit.data.sources.base import LabelRule, SourceOptions, describe
from kdkit.data.sources.class_order import check_texts
from kdkit.data.sources.hugging_face import HuggingFaceTable, is_hugging_face
from kdkit.data.sources.image import UNREADABLE, as_rgb, decode, decode_file, unreadable
from kdkit.data.sources.known import (
    check_same_classes,
    is_plain,
    is_torchvisions,
    known_keys,
    known_labels,
    names_for,
)
from kdkit.data.sources.labels import class_index
from kdkit.data.sources.repeatable import check_repeatable
from kdkit.errors import DatasetError


class MappedSource:
    """A dataset with a length whose items are pairs (image, class index), or mappings of an image and a label.

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
        class_names: one name per class, in the order of the dataset's indices; by default its `classes` or
            `class_to_idx`, or the names in the features of a Hugging Face dataset.
        image_column: name of the image in items that are mappings; `image` by default.
        label_column: name of the label in items that are mappings; `label` by default.
        labels: "none" takes every image without a label.

    Raises:
        DatasetError: it streams, its keys or class names do not fit or contradict its own, the order of its classes is
            not fixed, parts of a ConcatDataset have other classes than its first, or it returns another image or label
            each time, as a random transform makes it do.
        LabelError: a label that is known before its image is loaded is not a class index.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        keys: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        labels: LabelRule | None = None,
    ) -> None:
        _check_map_style(dataset)
        self.dataset, self._rows = _without_subsets(dataset)
        self._options = SourceOptions(image_column, label_column, labels)
        self._options.check_rule(f"a {type(dataset).__name__}")
        self.dataset = _with_tables(self.dataset, self._options)
        self._process = os.getpid()
        if keys is None:
            known = known_keys(self.dataset)
            keys = [known[row] for row in self._rows]
        self.keys: Sequence[str] = check_texts(keys, "keys")
        if len(self.keys) != len(dataset):
            raise DatasetError(f"{len(dataset)} samples came with {len(self.keys)} keys: expected one key per sample")
        if labels != "none":
            check_same_classes(self.dataset, names_given=class_names is not None)
        self.class_names: Sequence[str] | None = names_for(self.dataset, class_names)
        self.targets: Sequence[int] | None = self._known_targets()
        if labels == "none":
            self.class_names, self.targets = None, [-1] * len(self.keys)
        if _has_own_items(self.dataset):
            probe = copy.copy(self)  # a file that the dataset opens in the check is not shared with forked workers
            probe.dataset = copy.copy(self.dataset)
            check_repeatable(probe.__getitem__, len(self.keys), type(self.dataset).__name__)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, target = self.load(index)
        count = None if self.class_names is None else len(self.class_names)
        return image, class_index(target, self.keys[index], type(self.dataset).__name__, count)

    def load(self, index: int) -> tuple[Image.Image, Any]:
        """The RGB image of one sample, and its label as the dataset has it; None without labels."""
        key, origin = self.keys[index], type(self.dataset).__name__
        if is_plain(self.dataset, ImageDataset):
            self.reopen_after_fork()
            try:
                stream, target = self.dataset.reader[self._rows[index]]
            except OSError as error:
                raise unreadable(key, origin, error) from None
            if target is not None and self.dataset.target_transform is not None:
                target = self.dataset.target_transform(target)
            image = decode(stream, key, origin)
        else:
            item, target = self._item(self._rows[index], key)
            image = _to_image(item, key, origin)
        return image, None if self._options.labels == "none" else target

    def __repr__(self) -> str:
        return describe(self, type(self.dataset).__name__)

    def reopen_after_fork(self) -> None:
        """Called before timm's reader is used, whose open tars would share their position with another process."""
        if self._process != os.getpid():
            _forget_open_tars(self.dataset.reader)
            self._process = os.getpid()

    def _item(self, row: int, key: str) -> tuple[Any, Any]:
        item = self.dataset[row]
        if isinstance(item, (tuple, list)) and len(item) == 2:
            return item[0], item[1]
        if isinstance(item, (tuple, list)):  # of three, the label may be any
            raise DatasetError(
                f"the sample {key!r} is a {type(item).__name__} of {len(item)}: expected (image, label); wrap the "
                "dataset so that its items are these two"
            )
        if not isinstance(item, Mapping):
            raise DatasetError(f"the sample {key!r} is a {type(item).__name__}: expected (image, label), or a mapping")
        image, label = self._options.image_column or "image", self._options.label_column or "label"
        needed = (image,) if self._options.labels == "none" else (image, label)
        for name in needed:
            if name not in item:
                raise DatasetError(f"the sample {key!r} has no {name!r} among {', '.join(map(str, item))}")
        return item[image], item.get(label)

    def _known_targets(self) -> list[int] | None:
        """The class index of each sample, if it is known without loading an image."""
        known = known_labels(self.dataset)
        if known is None:
            return None
        origin = type(self.dataset).__name__
        count = None if self.class_names is None else len(self.class_names)
        return [class_index(known[row], key, origin, count) for row, key in zip(self._rows, self.keys, strict=True)]


def _check_map_style(dataset: Any) -> None:
    name = type(dataset).__name__
    if isinstance(dataset, (str, bytes, Path)):
        raise DatasetError(f"the dataset is the {name} {dataset!r:.80}: open it first, kdkit.data.create_source(PATH)")
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
    while is_plain(dataset, Subset):
        rows = [int(dataset.indices[row]) for row in rows]
        dataset = dataset.dataset
    return dataset, rows


def _with_tables(dataset: Any, options: SourceOptions) -> Any:
    """The dataset with each datasets.Dataset as a HuggingFaceTable, also within ConcatDatasets and their Subsets."""
    if is_hugging_face(dataset):
        return HuggingFaceTable(dataset, options)
    if is_plain(dataset, Subset) and (inner := _with_tables(dataset.dataset, options)) is not dataset.dataset:
        return Subset(inner, dataset.indices)
    if is_plain(dataset, ConcatDataset):
        parts = [_with_tables(part, options) for part in dataset.datasets]
        return ConcatDataset(parts) if any(map(is_not, parts, dataset.datasets)) else dataset
    return dataset


def _has_own_items(dataset: Any) -> bool:
    """Whether the dataset's own code makes its items, which may then differ each time."""
    if isinstance(dataset, HuggingFaceTable) or is_plain(dataset, ImageDataset):
        return False
    return not is_torchvisions(dataset) or getattr(dataset, "transforms", None) is not None


def _to_image(image: Any, key: str, origin: str) -> Image.Image:
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] > 4:
        raise DatasetError(
            f"the sample {key!r} in {origin} is a tensor {list(image.shape)}, expected [3, H, W]: move the channels to "
            "the front, image.permute(2, 0, 1)"
        )
    try:
        if isinstance(image, Image.Image):
            rgb = as_rgb(image)
            return rgb.copy() if rgb is image else rgb  # a transform may write to it, and the dataset may keep it
        if isinstance(image, np.ndarray) and image.dtype == np.uint8:
            return Image.fromarray(image).convert("RGB")
        if isinstance(image, Tensor) and image.dtype == torch.uint8:
            converted: Image.Image = to_pil_image(image)
            return converted.convert("RGB")
    except (*UNREADABLE, TypeError) as error:
        raise unreadable(key, origin, error) from None
    if isinstance(image, Mapping) and {"bytes", "path"} <= image.keys():  # undecoded, of a Hugging Face dataset
        if image["bytes"] is not None:
            return decode(io.BytesIO(image["bytes"]), key, origin)
        return decode_file(Path(str(image["path"])), key, origin)
    kind = f"{image.dtype} {type(image).__name__}" if hasattr(image, "dtype") else type(image).__name__
    raise DatasetError(
        f"the sample {key!r} is a {kind}, expected a PIL image or uint8 pixels: take the transform out of the dataset, "
        "kdkit makes the views"
    )
