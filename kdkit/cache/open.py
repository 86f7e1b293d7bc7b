"""Open a cache, or several caches, as a reader of the teacher's outputs: open_cache."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import overload

from kdkit.cache.matching import Replayable
from kdkit.cache.mixture import CacheMixture
from kdkit.cache.parts import LiveTeacher
from kdkit.cache.reader import CachedTeacher
from kdkit.cache.selection import ClassMap, ClassSelection
from kdkit.errors import ConfigError

Paths = str | Path | Sequence[str | Path]
"""One cache, or several."""


@overload
def open_cache(  # type: ignore[overload-overlap]  # a str is also a sequence of them
    path: str | Path,
    dataset: Replayable | None = None,
    *,
    streams: Collection[str] | None = None,
    verify: bool = True,
    sparse: bool = False,
    allow_mismatch: Collection[str] = (),
    class_names: None = None,
    class_map: None = None,
) -> CachedTeacher: ...
@overload
def open_cache(  # type: ignore[overload-overlap]  # None is also no list of names
    path: Sequence[str | Path],
    dataset: Replayable | None = None,
    *,
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
    live: LiveTeacher | None = None,
    streams: Collection[str] | None = None,
    verify: bool = True,
    allow_mismatch: Collection[str] = (),
    class_names: None = None,
    class_map: None = None,
) -> CacheMixture: ...
@overload
def open_cache(
    path: Paths,
    dataset: Replayable | None = None,
    *,
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
    live: LiveTeacher | None = None,
    streams: Collection[str] | None = None,
    verify: bool = True,
    allow_mismatch: Collection[str] = (),
    class_names: Sequence[str] | None = None,
    class_map: ClassMap | None = None,
) -> ClassSelection: ...
def open_cache(
    path: Paths,
    dataset: Replayable | None = None,
    *,
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
    live: LiveTeacher | None = None,
    streams: Collection[str] | None = None,
    verify: bool = True,
    sparse: bool = False,
    allow_mismatch: Collection[str] = (),
    class_names: Sequence[str] | None = None,
    class_map: ClassMap | None = None,
) -> CachedTeacher | CacheMixture | ClassSelection:
    """Opens a cache for reading; or several caches, or caches and a live teacher, whose probabilities are averaged.

    Args:
        path: a packed file or a folder of shards, or the path that the folder would be packed to; or a list of these.
        dataset: the dataset to train on. Its keys, recipe, class names and some of its pixels are compared with those
            that each cache was made with, and its rows are matched to the cache's. Without it `read_encoded` takes the
            cache's own rows, and batches are refused until `match` is called.
        weights, temperatures: of several caches, one number each, the live teacher's at last; as for CacheMixture.
        live: a Teacher that runs on each batch, as a further part of the mix; as for CacheMixture.
        streams: streams returned per batch, e.g. ["logits", "pooled"]; None: all.
        verify: verify each block on first access.
        sparse: whether a topk cache returns only its k classes, so that no tensor [B, C] is ever built for the teacher:
            for very many classes, with the losses kl, soft_ce and dkd.
        allow_mismatch: fields, as named in the error, that may differ.
        class_names, class_map: a part of the classes, whose probabilities are renormalised; as for ClassSelection.
            `open_dataset(DATA, cache=cache)` leaves out the images of other classes.

    Raises:
        CacheNotFoundError: there is no cache at `path`.
        CacheIncompleteError: its build has not finished.
        CacheMismatchError: it was made with a different recipe, dataset or images; names the field and both values.
        CacheStreamError: the cache lacks one of the streams; names the streams that it has.
        CacheCorruptError, CacheVersionError: it is damaged, or of a format that this version cannot read.
        ClassMismatchError: several caches differ in the number or the order of their classes, or a cache lacks one of
            the chosen classes.
        ConfigError: `path` is neither a path nor a list of paths, or the weights or temperatures do not fit the caches.
    """
    cache: CachedTeacher | CacheMixture
    reader: CachedTeacher | CacheMixture | ClassSelection
    if isinstance(path, (str, Path)):
        if weights is not None or temperatures is not None or live is not None:
            raise ConfigError(f"weights, temperatures and live are of a list of caches, got one path, {str(path)!r}")
        cache = CachedTeacher(path, streams=streams, verify=verify, sparse=sparse)
    else:
        if sparse:
            raise ConfigError("sparse rows of several caches cannot be averaged: open one cache, or leave out sparse")
        caches = [CachedTeacher(each, verify=verify) for each in _listed(path)]
        cache = CacheMixture(caches, weights, temperatures, streams=streams, live=live)
    reader = cache
    if class_names is not None or class_map is not None:
        if sparse:
            raise ConfigError("sparse rows of a part of the classes cannot be read: leave out sparse")
        reader = ClassSelection(cache, class_names, class_map)
    if dataset is not None:
        reader.match(dataset, allow_mismatch=allow_mismatch)
    return reader


def _listed(paths: Sequence[str | Path]) -> list[str | Path]:
    """The paths of several caches."""
    if not isinstance(paths, Iterable):
        raise ConfigError(f"open_cache takes the path of a cache or a list of them, got {paths!r}")
    listed = list(paths)
    for number, each in enumerate(listed):
        if not isinstance(each, (str, Path)):
            raise ConfigError(f"open_cache takes a list of paths, got {each!r} as number {number} of {listed!r:.200}")
    return listed
