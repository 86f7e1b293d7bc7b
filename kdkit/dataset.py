"""From DATA to the views of a recipe or a cache: the entry point for the command line and for custom loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdkit.cache import CacheReader, open_cache
from kdkit.data import ReplayedDataset, create_source
from kdkit.recipe import ViewRecipe


def open_dataset(
    data: Any,
    *,
    cache: str | Path | CacheReader | None = None,
    recipe: ViewRecipe | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ReplayedDataset:
    """Opens the images that `data` refers to, in the views of a cache or a recipe.

    Args:
        data: a name or path, as the command line takes it, a source, a datasets.Dataset or another map-style dataset:
            see `kdkit.data.create_source`.
        cache: a teacher cache, or its path. It gives the recipe, and is compared with the dataset: samples, class
            names and the pixels of some views. An open cache is thereby matched with this dataset.
        recipe: the settings of the views; the cache's by default, else `ViewRecipe()`.
        image_column: column of the images or their paths, where `data` has columns.
        label_column: column of the labels, where `data` has columns.

    Raises:
        DatasetError: `data` cannot be read.
        CacheMismatchError: the cache was made from other data, or with another recipe.
        ConfigError: an option does not fit the kind of data, or the recipe needs a transform that it cannot hold.
    """
    if isinstance(cache, (str, Path)):
        cache = open_cache(cache)
    if recipe is None:
        recipe = ViewRecipe() if cache is None else cache.recipe
    dataset = ReplayedDataset(create_source(data, image_column=image_column, label_column=label_column), recipe)
    if cache is not None:
        cache.match(dataset)
    return dataset
