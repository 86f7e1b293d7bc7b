"""What a map-style dataset tells without loading an image: keys, labels and the names of classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import ImageDataset
from torchvision.datasets import DatasetFolder

from kdkit.data.sources.hugging_face import HuggingFaceTable, arrow_column
from kdkit.data.sources.listing import natural_order
from kdkit.errors import DatasetError


def known_keys(dataset: Any) -> list[str]:
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


def known_labels(dataset: Any) -> Sequence[Any] | None:
    """The labels of a dataset in its order, if nothing that is applied when an image is loaded can change them."""
    if isinstance(dataset, HuggingFaceTable):
        return dataset.targets
    labels: Any = None
    if getattr(dataset, "target_transform", None) is None:
        if isinstance(dataset, ImageDataset):
            samples = getattr(dataset.reader, "samples", None)
            pairs = samples if isinstance(samples, (list, tuple)) else []
            labels = [pair[1] if isinstance(pair, tuple) and len(pair) == 2 else None for pair in pairs]
        elif isinstance(dataset, DatasetFolder):
            labels = [target for _, target in dataset.samples]  # which its items are loaded from; `targets` is a copy
        elif is_torchvisions(dataset):
            labels = getattr(dataset, "targets", None)
    found = np.asarray(labels)
    return found.tolist() if found.shape == (len(dataset),) and found.dtype.kind in "iu" else None


def is_torchvisions(dataset: Any) -> bool:
    """Whether the code of the dataset is torchvision's own."""
    return type(dataset).__module__.startswith("torchvision.datasets.")


def known_class_names(dataset: Any) -> list[str] | None:
    """The class names that a map-style dataset has, by their index.

    Raises:
        DatasetError: the order of timm's classes differs from process to process, or class indices have gaps.
    """
    if getattr(dataset, "target_transform", None) is not None:
        return None  # the labels are others than those that have the names
    for holder in (dataset, getattr(dataset, "reader", None)):
        names = getattr(holder, "classes", None)
        if isinstance(names, (list, tuple)) and names:
            joined = [", ".join(name) if isinstance(name, tuple) else name for name in names]  # ImageNet's synonyms
            if all(isinstance(name, str) for name in joined):
                return joined
        if isinstance(indices := getattr(holder, "class_to_idx", None), dict) and indices:
            if not all(isinstance(n, str) and isinstance(i, (int, np.integer)) for n, i in indices.items()):
                raise DatasetError(
                    f"class_to_idx of the dataset {type(dataset).__name__} must map texts to whole numbers, got "
                    f"{indices!r:.80}"
                )
            names = sorted(indices, key=indices.__getitem__)
            if isinstance(dataset, ImageDataset) and len({str(natural_order(name)[0]) for name in names}) < len(names):
                raise DatasetError(
                    "timm orders class names by chance where only case or leading zeros differ: read the images "
                    "with kdkit.data.FolderSource or TarSource"
                )
            if sorted(indices.values()) != list(range(len(indices))):
                raise DatasetError(
                    f"class_to_idx of the dataset {type(dataset).__name__} maps {len(indices)} names to other numbers "
                    f"than 0 to {len(indices) - 1}: give class_names"
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
