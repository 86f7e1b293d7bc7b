"""The samples and views of a cache, for another teacher on the very same views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdkit.cache import open_cache
from kdkit.cache.format.keys import check_same_samples
from kdkit.data import ReplayedDataset, create_source
from kdkit.data.sources.selection import SelectedSource


def open_like(data: Any, like: str | Path, **options: Any) -> ReplayedDataset:
    """The images of `data` that a cache holds, in the cache's order and views, for `build_cache` with another teacher.

    Recipe, number of views, samples, their order and the class names are the cache's. Images of `data` that the cache
    does not hold are left out. Pixels of views that the cache has hashes of are drawn and compared.

    Args:
        data: where the images are, as for `kdkit.open_dataset`.
        like: the cache.
        options: how the data is read, as for `kdkit.data.create_source`.

    Raises:
        CacheMismatchError: an image is missing, the class names differ, or a view shows other pixels; named.
    """
    cache, source = open_cache(like), create_source(data, **options)
    places = {key: place for place, key in enumerate(source.keys)}
    keys = cache.keys()
    held = [places[key] for key in keys if key in places]
    check_same_samples(keys, [source.keys[place] for place in held], f"the cache {str(like)!r}")
    dataset = ReplayedDataset(SelectedSource(source, held), cache.recipe, records=cache)
    dataset.absent = frozenset(cache.absent_keys)
    if dataset.class_names is None and cache.names_classes:  # unlabelled images, or class indices
        dataset.class_names = cache.class_names
    cache.match(dataset)
    return dataset
