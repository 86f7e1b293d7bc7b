"""Merging caches of different images, and removing images from a cache."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdkit.building.build import BuildReport
from kdkit.building.copies import check_not_renamed, warn_of_copies
from kdkit.building.in_place import check_replaceable, replace, tidy
from kdkit.building.parts import check_stands_alone
from kdkit.building.piece import Piece, codecs_of
from kdkit.building.rewrite import Rewrite, write_rows
from kdkit.cache import CachedTeacher
from kdkit.cache.content import CONTENT_FIELD
from kdkit.cache.format.keys import list_keys
from kdkit.cache.matching import CLASSES_FIELD
from kdkit.data import ReplayedDataset
from kdkit.errors import CacheMismatchError, ConfigError
from kdkit.runtime.compare import check_match
from kdkit.runtime.pixels import pixel_crc32
from kdkit.runtime.progress import progress


def merge_caches(paths: Sequence[str | Path], output: str | Path, *, show_progress: bool = False) -> BuildReport:
    """Writes one cache of the images of several that were made alike; the teacher does not run.

    Rows keep their bytes. Where a codec was fitted to other images, or is another one, rows are encoded again in the
    first cache's codec; their fidelity is measured relative to the rows that were decoded, not to the teacher. A merge
    that was stopped resumes when this function is called again.

    Args:
        paths: caches of different images by the same teacher, with the same recipe, streams and class names.
        output: the packed file to write.
        show_progress: whether progress is shown on standard error.

    Raises:
        CacheMismatchError: the caches were not made alike, or hold the same image; names the field or the images.
        ConfigError: there are fewer than two caches, or `output` is one of them.
        CacheError: the output cannot be written, or the disk is full.
    """
    begun, output = time.monotonic(), Path(output)
    if len(paths) < 2:
        raise ConfigError(f"a merge takes at least two caches, got {len(paths)}")
    caches = [CachedTeacher(path) for path in paths]
    if any(output.resolve() == cache.path.resolve() for cache in caches):
        raise ConfigError(f"the output {str(output)!r} is one of the caches to merge: name another file")
    for cache in caches:
        check_stands_alone(cache, "merged")
        check_made_alike(caches[0], cache)
    _check_no_image_twice(caches)
    for cache in caches[1:]:
        warn_of_copies(caches[0], cache)
    rewrite = Rewrite([Piece(cache, np.arange(cache.num_rows)) for cache in caches])
    total = rewrite.num_views * sum(cache.num_rows for cache in caches)
    with progress(f"merging {len(caches)} caches", total, "rows", enabled=show_progress) as advance:
        record = {"merged": [cache.identity for cache in caches]}
        place = write_rows(rewrite, output, record, advance)
    return report_on(place, 0, begun)


def prune_cache(
    path: str | Path,
    dataset: ReplayedDataset,
    *,
    allow_mismatch: Collection[str] = (),
    show_progress: bool = False,
) -> BuildReport:
    """Removes the images that `dataset` lacks from a packed cache; rows keep their bytes, and the teacher does not run.

    The images that stay are compared with those of the build, as on opening, so another folder with some of the names
    removes nothing. The cache is replaced in one step. Stopped before, it is as it was, and the same call resumes.

    Args:
        path: the packed file.
        dataset: the images to keep, in the cache's recipe. Images that are not in the cache are ignored.
        allow_mismatch: fields, named as in the error, in which the images may differ.
        show_progress: whether progress is shown on standard error.

    Raises:
        CacheMismatchError: no image would be left, the views are mixed in pairs, an image that stays is another one
            now, or an image to remove has another name now.
        CacheLockedError: another process is changing the cache.
        CacheError: the cache is a folder of shards, is being extended, or cannot be written.
    """
    begun, cache = time.monotonic(), CachedTeacher(path)
    check_replaceable(cache)
    places = {key: place for place, key in enumerate(dataset.keys)}
    keys = cache.keys()
    rows = np.array([row for row, key in enumerate(keys) if key in places], dtype=np.int64)
    if not len(rows):
        raise CacheMismatchError(
            f"none of the {cache.num_rows} images of the cache {str(path)!r} is among the {len(dataset)} given "
            f"({list_keys(dataset.keys)}): expected the images to keep"
        )
    if len(rows) == cache.num_rows:
        tidy(cache.path)
        return report_on(cache.path, 0, begun)
    check_stands_alone(cache, "pruned")
    kept = dataset.selecting([places[keys[row]] for row in rows.tolist()])
    cache.match(kept, allow_mismatch={*allow_mismatch, CLASSES_FIELD})  # a class may be gone with its images
    if CONTENT_FIELD not in allow_mismatch:
        check_not_renamed(cache, dataset)
    seen = dataset.for_teacher()
    rewrite = Rewrite([Piece(cache, rows)], hash_pixels=lambda key, view: pixel_crc32(seen[places[key], view].image))
    total = rewrite.num_views * len(rows)
    with progress(f"pruning {cache.path}", total, "rows", enabled=show_progress) as advance:
        record = {"pruned": cache.identity, "removed": cache.num_rows - len(rows)}
        place = replace(cache, rewrite, record, advance)
    return report_on(place, 0, begun)


def check_made_alike(first: CachedTeacher, other: CachedTeacher, allow_mismatch: Collection[str] = ()) -> None:
    """Checks that two caches have the same teacher, recipe, streams and classes.

    Args:
        first, other: the caches.
        allow_mismatch: fields, named as in the error, in which they may differ.

    Raises:
        CacheMismatchError: names the first field that differs and both values.
    """
    shown = f"the cache {str(first.path)!r}"
    one, two = first.metadata, other.metadata

    def streams(cache: CachedTeacher) -> dict[str, Any]:
        codecs = codecs_of(cache)
        return {
            name: {field: getattr(codec, field, None) for field in ("num_classes", "multi_label", "shape")}
            for name, codec in codecs.items()
        }

    try:
        check_match("teacher", one.teacher, two.teacher, shown, allow_mismatch)
        check_match("recipe", one.recipe, two.recipe, shown, allow_mismatch)
        check_match("streams", streams(first), streams(other), shown)
        before, after = ({"class_names": found.dataset["class_names"]} for found in (one, two))
        check_match("dataset", before, after, shown, allow_mismatch)
    except CacheMismatchError as error:
        text = str(error).replace("this run has", f"{str(other.path)!r} has")
        raise CacheMismatchError(f"{text.rpartition(':')[0]}: only caches that were made alike can be merged") from None


def report_on(path: Path, images: int, begun: float) -> BuildReport:
    """The report on a finished cache; `images`: how many the teacher ran on, `begun`: monotonic time in seconds."""
    cache = CachedTeacher(path)
    return BuildReport(path, cache.num_rows, cache.num_views, cache.num_bytes, images, time.monotonic() - begun)


def _check_no_image_twice(caches: Sequence[CachedTeacher]) -> None:
    seen: dict[str, Path] = {}
    for cache in caches:
        keys = cache.keys()
        if twice := [key for key in keys if key in seen]:
            raise CacheMismatchError(
                f"{len(twice)} images are in {str(seen[twice[0]])!r} and in {str(cache.path)!r} ({list_keys(twice)}): "
                "leave them out of one with `kdkit cache prune`"
            )
        seen |= dict.fromkeys(keys, cache.path)
