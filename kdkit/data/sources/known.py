"""What a map-style dataset tells without loading an image: keys, labels and the names of classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import ImageDataset
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import DatasetFolder

from kdkit.data.sources.base import targets_of
from kdkit.data.sources.class_order import check_names
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
    if is_source(dataset):
        found = targets_of(dataset)
        return None if found is None else found.tolist()
    labels: Any = None
    if getattr(dataset, "target_transform", None) is None:
        if is_plain(dataset, ImageDataset):
            samples = getattr(dataset.reader, "samples", None)
            pairs = samples if isinstance(samples, (list, tuple)) else []
            labels = [pair[1] if isinstance(pair, tuple) and len(pair) == 2 else None for pair in pairs]
        elif isinstance(dataset, DatasetFolder):
            labels = [target for _, target in dataset.samples]  # which its items are loaded from; `targets` is a copy
        elif is_torchvisions(dataset):
            labels = getattr(dataset, "targets", None)
    found = np.asarray(labels)
    return found.tolist() if found.shape == (len(dataset),) and found.dtype.kind in "iu" else None


def is_plain(dataset: Any, kind: type[Dataset[Any]]) -> bool:
    """Whether this is a dataset of a kind whose items no subclass makes otherwise, such as one that changes labels."""
    return isinstance(dataset, kind) and type(dataset).__getitem__ is kind.__getitem__


def is_source(dataset: Any) -> bool:
    """Whether this is a source, with keys and class names; a datasets.Dataset or a mapping is none."""
    return hasattr(dataset, "class_names") and isinstance(getattr(dataset, "keys", None), Sequence)


def is_torchvisions(dataset: Any) -> bool:
    """Whether the code of the dataset is torchvision's own."""
    return type(dataset).__module__.startswith("torchvision.datasets.")


def known_class_names(dataset: Any) -> list[str] | None:
    """The class names that a map-style dataset has, by their index.

    Raises:
        DatasetError: the order of timm's classes differs from process to process, class indices have gaps, or
            `classes` and `class_to_idx` contradict each other.
    """
    if is_plain(dataset, ConcatDataset):
        return next((found for part in parts_of(dataset) if (found := known_class_names(part)) is not None), None)
    if is_source(dataset):
        return None if dataset.class_names is None else list(dataset.class_names)
    if getattr(dataset, "target_transform", None) is not None:
        return None  # the labels are others than those that have the names
    for holder in (dataset, getattr(dataset, "reader", None)):
        names = getattr(holder, "classes", None)
        if isinstance(names, (list, tuple)) and names:
            joined = [", ".join(name) if isinstance(name, tuple) else name for name in names]  # ImageNet's synonyms
            if all(isinstance(name, str) for name in joined):
                _check_indices(joined, getattr(holder, "class_to_idx", None), type(dataset).__name__)
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


def names_for(dataset: Any, given: Any) -> list[str] | None:
    """The class names that a caller gives a map-style dataset, or those that it has.

    Raises:
        DatasetError: the given ones are no list of texts, or name at one index a class that the dataset has at another.
    """
    if given is None:
        return known_class_names(dataset)
    names = check_names(given)
    try:
        own = known_class_names(dataset) or []
    except DatasetError:  # which the given names replace
        own = []
    for place, (name, other) in enumerate(zip(names, own, strict=False)):
        if name != other and name in own:
            raise DatasetError(
                f"class_names call class {place} {name!r}, which is {other!r} in the dataset {type(dataset).__name__}: "
                "they name its indices in its own order; to choose classes, or another order of them, give class_names "
                "to kdkit.open_dataset"
            )
    return names


def _check_indices(names: Sequence[str], indices: Any, dataset: str) -> None:
    """Raises DatasetError if a class of these names has another index in `class_to_idx`."""
    known = set(names)
    for name, index in indices.items() if isinstance(indices, dict) else ():
        if name in known and not (index in range(len(names)) and names[index] == name):
            raise DatasetError(
                f"the class {name!r} of the dataset {dataset} is {index!r} in its class_to_idx, and "
                f"{names.index(name)} in its classes: give it one order of its classes"
            )


def parts_of(dataset: Any) -> list[Any]:
    """The datasets that a ConcatDataset joins, also within Subsets and each other; of another dataset itself."""
    while is_plain(dataset, Subset):
        dataset = dataset.dataset
    if is_plain(dataset, ConcatDataset):
        return [part for each in dataset.datasets for part in parts_of(each)]
    return [dataset]


def check_same_classes(dataset: Any, *, names_given: bool) -> None:
    """Checks that an index means one class in all parts of a ConcatDataset, which leaves their labels as they are.

    Args:
        dataset: any map-style dataset.
        names_given: whether the caller names the classes, which tells what indices without names mean.

    Raises:
        DatasetError: parts have other classes, or the same ones in another order, or only some name them; names the
            first difference.
    """
    joined = parts_of(dataset) if is_plain(dataset, ConcatDataset) else []
    parts = [(part, known_class_names(part)) for part in joined]
    named = [(part, names) for part, names in parts if names is not None]
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
    unnamed = [part for part, names in parts if names is None and not _is_unlabelled(part)]
    if named and unnamed and not names_given:
        raise DatasetError(
            f"of the parts of the ConcatDataset, a {type(named[0][0]).__name__} names its classes and a "
            f"{type(unnamed[0]).__name__} has class indices alone: give class_names to kdkit.data.MappedSource if both "
            "have them in one order"
        )


def _is_unlabelled(dataset: Any) -> bool:
    labels = known_labels(dataset)
    return labels is not None and all(label < 0 for label in labels)


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
