"""Readers of a parts folder whose shards a writer packs into one file at that moment."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from kdkit.cache.shards.folder import packed_file
from kdkit.errors import CacheError

P = ParamSpec("P")
T = TypeVar("T")


def follow_packing(read: Callable[Concatenate[Path, P], T]) -> Callable[Concatenate[Path, P], T]:
    """`read` of a finished cache's path, which reads the packed file if the shards were packed before it was done."""

    @wraps(read)
    def reading(path: Path, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(path, *args, **kwargs)
        except (CacheError, OSError):
            packed = packed_file(path)  # written before the first shard goes
            if packed == path or not packed.is_file():
                raise
            return read(packed, *args, **kwargs)

    return reading
