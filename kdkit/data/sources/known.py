"""What a map-style dataset tells without loading an image: keys, labels and the names of classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import ImageDataset
from torch.utils.data import ConcatDataset, Subset
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
    if isinstance(dataset, ConcatDataset):
        parts = [known_class_names(part) for part in parts_of(dataset)]
        return None if None in parts else parts[0]
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


def parts_of(dataset: Any) -> list[Any]:
    """The datasets that a ConcatDataset joins, also within Subsets and each other; of another dataset itself."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, ConcatDataset):
        return [part for each in dataset.datasets for part in parts_of(each)]
    return [dataset]


def check_same_classes(dataset: Any) -> None:
    """Checks that an index means one class in all parts of a ConcatDataset, which leaves their labels as they are.

    Raises:
        DatasetError: parts have other classes, or the same ones in another order; names the first difference.
    """
    parts = parts_of(dataset) if isinstance(dataset, ConcatDataset) else []
    named = [(part, names) for part in parts if (names := known_class_names(part)) is not None]
    for part, names in named[1:]:
        first, expected = named[0]
        if names == expected:
            continue
        pairs = zip_longest(expected, names)
        place, (one, other) = next((place, pair) for place, pair in enumerate(pairs) if pair[0] != pair[1])
        raise DatasetError(
            f"the parts of the ConcatDataset have other classes: index {place} is {_of(one, first)} and "
            f"{_of(other, part)}; give parts of the same classes in one order, or open their paths with "
            "kdkit.open_dataset([A, B]), which finds classes by name"
        )


def _of(name: str | None, dataset: Any) -> str:
    place = f" of {str(root)!r}" if isinstance(root := getattr(dataset, "root", None), (str, Path)) else ""
    return f"{'no class' if name is None else repr(name)} in the {type(dataset).__name__}{place}"


def below_common_folder(texts: Sequence[str]) -> list[str]:
    """Absolute paths without the folder that all have in common, which differs from machine to machine."""
    paths = [Path(text) for text in texts]
    if not paths or not all(path.is_absolute() for path in paths):
        return [path.as_posix() for path in paths]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(root).as_posix() for path in paths]
