"""Open `data` as the views of a recipe or a cache: the entry point for the command line and for custom loops."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kdkit.cache import CacheMixture, CacheReader, ClassSelection, open_cache
from kdkit.cache.open import Paths
from kdkit.data import ReplayedDataset, create_source
from kdkit.data.sources.base import LabelRule
from kdkit.data.sources.classes import ClassesSource
from kdkit.data.sources.labels import tell_counted_from_one
from kdkit.data.views.recorded import RecordStore
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher
from kdkit.teachers.class_indices import check_classes_told
from kdkit.teachers.matching import tell_crossed

_logger = logging.getLogger(__name__)


def open_dataset(
    data: Any,
    *,
    cache: Paths | CacheReader | None = None,
    recipe: ViewRecipe | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: LabelRule | None = None,
    skip_missing: bool = False,
    records: RecordStore | None = None,
    class_names: Sequence[str] | None = None,
) -> ReplayedDataset:
    """Opens the images that `data` refers to, in the views of a cache or a recipe.

    Args:
        data: a name or path, as the command line takes it, a source, a datasets.Dataset or another map-style dataset:
            see `kdkit.data.create_source`.
        cache: a teacher cache, its path, or a list of paths. It gives the recipe, and is compared with the dataset:
            samples, class names and the pixels of some views. An open cache is thereby matched with this dataset.
            Images that its build left out as unreadable are left out, and of a cache of a part of the classes the
            images of other classes. If its logits are of other classes than the labels of `data`, as those of an import
            may be, a warning says so.
        recipe: the settings of the views; the cache's by default, else `ViewRecipe()`.
        image_column: column of the images or their paths, where `data` has columns.
        label_column: column of the labels, where `data` has columns; of WebDataset shards, a field of the .json files.
        labels: where labels come from, if the content of `data` does not decide: "folder", "tar" or "none".
        skip_missing: leaves out whatever should hold an image and does not, instead of refusing `data`.
        records: an open cache that is not matched here; its recorded views are replayed where the recipe says so.
            `cache` by default.
        class_names: the classes of `data` to keep, in the order of their labels; those of `cache` by default if it was
            opened for a part of its classes.

    Raises:
        DatasetError: `data` cannot be read.
        CacheMismatchError: the cache was made from other data, or with another recipe.
        ClassMismatchError: of the data and a live teacher beside the cache, one has class indices alone, whose order
            cannot be told.
        ConfigError: an option does not fit the kind of data, or the recipe needs a transform that it cannot hold.
    """
    reader = open_cache(cache) if isinstance(cache, (str, Path, Sequence)) else cache
    if recipe is None:
        recipe = ViewRecipe() if reader is None else reader.recipe
    source = create_source(
        data, image_column=image_column, label_column=label_column, labels=labels, skip_missing=skip_missing
    )
    if isinstance(reader, ClassSelection) and class_names is None:
        class_names = reader.class_names
    if class_names is not None:
        source = ClassesSource(source, class_names, None if reader is None else all_class_names(reader))
    dataset = ReplayedDataset(source, recipe, records=records or records_of(reader))
    if dataset.class_names is None and dataset.targets is not None:
        tell_counted_from_one(dataset.targets, repr(source))
    if reader is not None:
        dataset = dataset.without(reader.absent_keys)
        match_cache(reader, dataset)
        if has_foreign_labels(dataset, reader):
            _logger.warning("%s: give the loss on labels the weight 0", describe_foreign_labels(dataset, reader))
    return dataset


def match_cache(cache: CacheReader, dataset: ReplayedDataset, *, allow_mismatch: Collection[str] = ()) -> None:
    """Matches a cache with a dataset, and compares the classes of both with those of a live teacher beside the cache.

    Raises:
        CacheMismatchError: recipe, samples, class names or pixels differ.
        ClassMismatchError: it cannot be told which class of the live teacher each class of the dataset is.
    """
    cache.match(dataset, allow_mismatch=allow_mismatch)
    whole = cache.cache if isinstance(cache, ClassSelection) else cache
    if not whole.names_classes:  # its logits are of other classes than the labels
        return
    if isinstance(whole, CacheMixture) and isinstance(whole.live, Teacher) and whole.live.num_classes != 0:
        check_classes_told(whole.live, dataset)
    known = whole.class_names
    if isinstance(cache, ClassSelection) and known is not None and cache.class_names is not None:
        tell_crossed(cache.class_names, [known[index] for index in cache.class_index], "the cache")


def has_foreign_labels(dataset: ReplayedDataset, cache: CacheReader) -> bool:
    """Whether the labels of a dataset may be of other classes than the logits of a cache, as those of an import.

    A class index of ten folders is another class among a teacher's thousand, so a loss on both would be wrong. An
    import gives a cache the classes of the data where it can map them by their WNIDs.
    """
    return not cache.names_classes and not dataset.is_unlabelled


def describe_foreign_labels(dataset: ReplayedDataset, cache: CacheReader) -> str:
    """That the classes differ, in words."""
    count = "" if dataset.class_names is None else f"{len(dataset.class_names)} "
    return f"the data's {count}classes are not the cache's {cache.num_classes} classes"


def records_of(cache: object) -> RecordStore | None:
    """The cache as a store of recorded views, if it can be one."""
    cache = cache.cache if isinstance(cache, ClassSelection) else cache
    return cache if isinstance(cache, RecordStore) else None


def all_class_names(cache: CacheReader) -> Sequence[str] | None:
    """Names of all classes of a cache that may have been opened for a part of them."""
    return cache.cache.class_names if isinstance(cache, ClassSelection) else cache.class_names
