"""Check that a cache belongs to the dataset, and map samples to cache rows.

Dimensions: N samples of a dataset, R rows of the cache.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kdkit.cache.content import CONTENT_FIELD, check_content
from kdkit.cache.format.keys import key_digests, list_keys, match_rows
from kdkit.cache.format.metadata import CacheMetadata
from kdkit.cache.lazy_arrays import begun_at, stored_absent, stored_content, stored_digests, stored_keys, stored_pixels
from kdkit.cache.pixels import check_pixels, checked_views
from kdkit.cache.types import Array
from kdkit.errors import CacheMismatchError
from kdkit.recipe import ViewRecipe
from kdkit.runtime.compare import check_match

CLASSES_FIELD = "dataset.class_names"
_ONE_PART = "name them to train on them alone, --class-names or open_cache(..., class_names=[...]), or give all classes"


class Replayable(Protocol):
    """The part of a dataset that a cache needs; kdkit.data.ReplayedDataset has it."""

    keys: Sequence[str]
    class_names: Sequence[str] | None
    recipe: ViewRecipe

    @property
    def is_unlabelled(self) -> bool:
        """Whether no sample has a label."""
        ...

    def __getitem__(self, index: tuple[int, int]) -> Any:
        """The sample at (row, view), with its pixels, uint8 [3, H, W], as `.image`."""
        ...

    def for_teacher(self) -> Replayable:
        """The same samples as the teacher sees them."""
        ...


def match_dataset(
    path: Path, metadata: CacheMetadata, dataset: Replayable, allow: Collection[str], *, names_classes: bool
) -> Array:
    """Compares a cache with a dataset, and finds the cache row of each of its samples, int64 [N].

    A run may use only the first views of a cache: a view does not depend on how many there are. Class names are not
    compared if the logits are of other classes (`names_classes` is false), because then no label means one of these.

    Raises:
        CacheMismatchError: recipe, samples, class names or pixels differ.
    """
    origin = f"the cache {str(path)!r}"
    views = min(metadata.num_views, dataset.recipe.num_views)
    recipe = ViewRecipe.completed({**metadata.recipe, "num_views": views})
    check_match("recipe", recipe, dataset.recipe.to_dict(), origin, allow)
    has_no_names = dataset.class_names is None and dataset.is_unlabelled
    if names_classes and not has_no_names:
        check_class_names(composed(metadata.dataset["class_names"]), composed(dataset.class_names), origin, allow)
    check_leaves_out(path, metadata, dataset.keys)
    rows = match_keys(path, metadata.num_rows, dataset.keys)
    _check_partners(path, metadata, dataset, rows)
    if metadata.content_kind is not None and CONTENT_FIELD not in allow:
        check_content(dataset, stored_content(path, metadata)[rows], metadata.content_kind, begun_at(path), origin)
    hashes = {view: stored_pixels(path, metadata, view) for view in checked_views(views)}
    check_pixels(dataset, rows, hashes, metadata.dataset.get("versions") or {}, origin)
    return rows


def check_not_replaced(path: Path, opened: CacheMetadata, now: CacheMetadata) -> None:
    """Checks that a cache that is opened again, in another process, still has the rows that were matched.

    Raises:
        CacheMismatchError: images were added or removed since, so that its rows are others.
    """
    if opened.dataset["keys_sha256"] != now.dataset["keys_sha256"]:
        raise CacheMismatchError(
            f"the cache {str(path)!r} had {opened.num_rows} images when it was opened, and has other ones now "
            f"({now.num_rows}): open it again after `kdkit cache extend` or `prune`"
        )


def check_class_names(
    cached: list[str] | None, given: list[str] | None, origin: str, allow: Collection[str], *, advice: str = _ONE_PART
) -> None:
    """Compares class names in composed form.

    Args:
        cached, given: of the cache and of the data.
        origin: the cache, for errors.
        allow: fields that may differ.
        advice: what to do where the data has a part of the cache's classes.

    Raises:
        CacheMismatchError: they differ.
    """
    if cached and given and set(given) < set(cached) and CLASSES_FIELD not in allow:
        raise CacheMismatchError(
            f"{origin} was made with {CLASSES_FIELD} of {len(cached)} classes, this run has {len(given)} of them: "
            f"{advice}"
        )
    check_match("dataset", {"class_names": cached}, {"class_names": given}, origin, allow)


def composed(names: Sequence[str] | None) -> list[str] | None:
    """Class names in Unicode's composed form (NFC), in which all compare; older caches may hold another form."""
    return None if names is None else [unicodedata.normalize("NFC", name) for name in names]


def check_leaves_out(path: Path, metadata: CacheMetadata, keys: Sequence[str]) -> None:
    """Checks that a dataset holds none of the samples that the cache has no rows for.

    Raises:
        CacheMismatchError: it holds some; names them.
    """
    absent = set(stored_absent(path, metadata))
    if absent and (held := [key for key in keys if key in absent]):
        raise CacheMismatchError(
            f"the cache {str(path)!r} has no rows for {len(held)} of {len(keys)} images ({list_keys(held)}), which "
            "could not be read when it was built: open the images with kdkit.open_dataset(DATA, cache=FILE), which "
            "leaves them out"
        )


def match_keys(path: Path, num_rows: int, keys: Sequence[str]) -> Array:
    """Cache row of each dataset sample, int64 [N]; the dataset may be a part of the cache's samples.

    Raises:
        CacheMismatchError: the cache does not hold a sample; named, with the command that adds it.
    """
    rows = match_rows(stored_digests(path, num_rows), key_digests(keys))
    if (rows < 0).any():
        more = [keys[place] for place in np.flatnonzero(rows < 0).tolist()]
        longer = next((key for key in stored_keys(path, num_rows) if key.endswith(f"/{more[0]}")), None)
        remedy = f"add them with `kdkit cache extend {path} DATA`, leave them out, or rename them back"
        if longer is not None:
            remedy = f"it has {longer!r}, so name the folders that it was built from, all of them and in their order"
        raise CacheMismatchError(
            f"the cache {str(path)!r} was made from another dataset: {len(more)} of {len(keys)} samples are not in it "
            f"({list_keys(more)}): {remedy}"
        )
    return rows


def _check_partners(path: Path, metadata: CacheMetadata, dataset: Replayable, rows: Array) -> None:
    """Raises CacheMismatchError if views are mixed and the dataset lacks samples: others would be mixed."""
    recipe = dataset.recipe
    if (recipe.mixes or "mixing" in (recipe.recorded or "")) and (lacking := metadata.num_rows - len(np.unique(rows))):
        found = set(rows.tolist())
        names = [key for row, key in enumerate(stored_keys(path, metadata.num_rows)) if row not in found]
        raise CacheMismatchError(
            f"the cache {str(path)!r} mixes each image with another, and {lacking} of its {metadata.num_rows} images "
            f"are not in the dataset ({list_keys(names)}): open all of them, and train on a part with --train.fraction,"
            " or build another cache"
        )
