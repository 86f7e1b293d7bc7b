"""Opening HDF5 files: only regular HDF5 files reach HDF5, and its failures become typed errors."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from kdkit.cache.hdf5.read import CheckedHDF5File
from kdkit.errors import CacheCorruptError, CacheError, CacheNotFoundError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@contextmanager
def open_hdf5(path: Path) -> Iterator[CheckedHDF5File]:
    """The file at `path`, read-only and without locking.

    Raises:
        CacheNotFoundError: there is none.
        CacheCorruptError: it is not a regular file, not HDF5, or reading it fails.
    """
    try:
        with _open(path) as file:
            yield CheckedHDF5File(path, file)
    except CacheError:
        raise
    except FileNotFoundError:
        raise CacheNotFoundError(f"{str(path)!r} is not there (any more)") from None
    except PermissionError as error:
        raise CacheError(f"{str(path)!r} may not be read: {error.strerror}") from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise CacheError(f"{str(path)!r}: too many open files: pack the cache, or raise `ulimit -n`") from None
        raise CacheCorruptError(f"{str(path)!r} cannot be read as a cache: {_one_line(error)}") from error
    except (RuntimeError, LookupError, ValueError, TypeError, MemoryError, OverflowError) as error:
        raise CacheCorruptError(f"{str(path)!r} cannot be read as a cache: {_one_line(error)}") from error


def check_no_symlink(path: Path) -> None:
    """Raises CacheCorruptError if `path` is a link: a parts folder holds regular files."""
    if path.is_symlink():
        raise CacheCorruptError(f"{str(path)!r} is a symbolic link, expected a file: copy what it points to")


def _open(path: Path) -> h5py.File:
    """Refuses by name and first bytes files that HDF5 should not even open: devices, pipes, pickles."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise CacheCorruptError(f"{str(path)!r} is not a regular file")
    with open(path, "rb") as raw:
        if raw.read(len(_SIGNATURE)) != _SIGNATURE:
            raise CacheCorruptError(f"{str(path)!r} is not an HDF5 file: a cache is one, made by `kdkit cache build`")
    return h5py.File(path, "r", locking=False)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
