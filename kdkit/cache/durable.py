"""Files that are either wholly there or not there at all, also after a crash.

A file is written under a private temporary name, fsynced, renamed into place, and its folder fsynced.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdkit.errors import CacheDiskFullError, CacheError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; afterwards that file stands at `path`, durably, or nothing changed.

    Raises:
        CacheDiskFullError: there was no room; the temporary file is removed.
        CacheError: the file system refused; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if isinstance(error, CacheError):
            raise
        if error.errno in _NO_ROOM:
            raise CacheDiskFullError(
                f"no room for {path}: {os.strerror(error.errno)}; free space and run again"
            ) from error
        raise CacheError(f"{path} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, durably and atomically."""
    with replacing(path) as temporary, open(temporary, "x", encoding="utf-8") as file:
        file.write(text)


def reserve(path: Path, num_bytes: int) -> None:
    """Proves that `num_bytes` can be written at `path`, so that HDF5 never meets a full disk; leaves no file.

    Raises:
        OSError: they cannot; ENOSPC, EDQUOT or EFBIG for want of room.
    """
    with open(path, "xb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        finally:
            path.unlink()


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Removes temporary files of writers that died, those of files whose name begins with `name`."""
    for leftover in folder.glob(f".{glob.escape(name)}*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def probe(folder: Path) -> None:
    """Writes a file and removes it.

    Raises:
        OSError: `folder` cannot be written.
    """
    place = folder / f".{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"
    place.touch(exist_ok=False)
    place.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
