"""Images and caches that change apart: which images a cache holds, and whether its views allow it."""

from __future__ import annotations

from collections.abc import Sequence

from kdkit.cache import CachedTeacher
from kdkit.data import ReplayedDataset
from kdkit.data.views.record import RecordedSteps
from kdkit.errors import CacheMismatchError


def part_of(dataset: ReplayedDataset, rows: Sequence[int]) -> ReplayedDataset:
    """The same views of some samples, in the order of `rows`; all as they are if their views depend on each other."""
    if list(rows) == list(range(len(dataset))) or dataset.recipe.mixes or dataset.recipe.recorded is not None:
        return dataset
    return dataset.selecting(rows)


def split_images(cache: CachedTeacher, dataset: ReplayedDataset) -> tuple[list[int], list[int]]:
    """The dataset's rows that the cache holds, in the cache's order, and those that it does not hold."""
    places = {key: place for place, key in enumerate(dataset.keys)}
    keys = cache.keys()
    held = [places[key] for key in keys if key in places]
    known = set(held)
    return held, [row for row in range(len(dataset)) if row not in known]


def check_stands_alone(cache: CachedTeacher, change: str) -> None:
    """Checks that no view depends on other images, so that these may come and go.

    Args:
        cache: the cache.
        change: what is done to it, e.g. "pruned".

    Raises:
        CacheMismatchError: its views are mixed in pairs of all its images.
    """
    recipe = cache.recipe
    if recipe.mixes or (recipe.recorded is not None and RecordedSteps.parse(recipe.recorded).mixing):
        raise CacheMismatchError(
            f"the cache {str(cache.path)!r} cannot be {change}: its views mix each image with another, so that other "
            "images give other views; build another cache"
        )
