"""Writing errors of a cache: what kdkit.runtime.files raises for any file, as the errors of a cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdkit.errors import CacheDiskFullError, CacheError, CacheWriteError, DiskFullError, WriteError
from kdkit.runtime import files


@contextmanager
def cache_write_errors() -> Iterator[None]:
    """Within it, or in a function that it decorates, a WriteError becomes the CacheError of the same meaning.

    Raises:
        CacheDiskFullError: there was no room.
        CacheWriteError: the file system refused.
    """
    try:
        yield
    except CacheError:
        raise
    except WriteError as error:
        kind = CacheDiskFullError if isinstance(error, DiskFullError) else CacheWriteError
        raise kind(str(error)) from error


def check_not_full(path: Path, error: OSError) -> None:
    """Raises the typed error if a call on `path` failed for lack of room, and returns otherwise.

    Raises:
        CacheDiskFullError: the disk or the quota is full, or the file would be too large.
    """
    found = files.write_error(path, error)
    if isinstance(found, DiskFullError):
        raise CacheDiskFullError(str(found)) from error
