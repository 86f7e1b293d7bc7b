"""Replace a packed cache by a new version of itself in one step: whoever opens it finds the old one or the new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdkit.building.rewrite import Rewrite, write_rows
from kdkit.cache import CachedTeacher
from kdkit.cache.extension import is_extending
from kdkit.cache.places import remove_remains
from kdkit.cache.shards.folder import shard_folder
from kdkit.cache.shards.lock import writer_lock
from kdkit.errors import CacheError, CacheLockedError, CacheMismatchError
from kdkit.runtime import files

_NEW = ".new"
MORE = ".more"
"""Suffix of the cache of further images, until both are one."""


def check_replaceable(cache: CachedTeacher) -> None:
    """Checks that a cache is one file, and that no extension of it is under way.

    Raises:
        CacheError: it is a folder of shards, or is being extended.
    """
    shown = repr(str(cache.path))
    if cache.path.is_dir():
        raise CacheError(f"the cache {shown} is a folder of shards: pack it first, `kdkit cache pack {cache.path}`")
    if is_extending(cache.path, cache.num_views):
        raise CacheError(
            f"an extension of the cache {shown} to more views was stopped: finish it with `kdkit cache extend "
            f"{cache.path} DATA --views N`, or delete {str(shard_folder(cache.path))!r}"
        )


def replace(cache: CachedTeacher, rewrite: Rewrite, record: Mapping[str, Any], advance: Callable[[int], None]) -> Path:
    """Writes the new version beside the cache and renames it over the cache; a stopped one is resumed.

    Raises:
        CacheLockedError: another process is changing the cache, or has changed it since it was opened.
        CacheError: the folder cannot be written, or the disk is full; the cache is as it was.
    """
    new = cache.path.with_name(cache.path.name + _NEW)
    try:
        write_rows(rewrite, new, record, advance)
    except CacheMismatchError:  # what was stopped here was another change; to copy rows again costs little
        remove(new)
        write_rows(rewrite, new, record, advance)
    if CachedTeacher(cache.path).metadata != cache.metadata:
        remove(new)
        raise CacheLockedError(f"the cache {str(cache.path)!r} was just changed by another process: run again")
    files.rename(new, cache.path)
    tidy(cache.path)
    return cache.path


def tidy(path: Path) -> None:
    """Removes what stopped changes of a packed cache left beside it, but not an unfinished extension to more views."""
    if path.is_dir():
        return
    for suffix in (_NEW, MORE):
        other = path.with_name(path.name + suffix)
        remove(other)
        files.remove_leftovers(path.parent, other.name)
    files.remove_leftovers(path.parent, path.name)
    remove_remains(path, CachedTeacher(path).num_views)


def remove(path: Path) -> None:
    """Removes a cache, finished or not; nothing if there is none.

    Raises:
        CacheLockedError: another process is writing it.
    """
    folder = shard_folder(path)
    if folder.is_dir():
        with writer_lock(folder):
            files.remove_folder(folder)
    files.remove_file(path)
