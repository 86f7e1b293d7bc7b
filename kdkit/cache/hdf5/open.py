"""Opening HDF5 files: only regular HDF5 files reach HDF5, and its failures become typed errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from kdkit.cache.hdf5.read import CheckedHDF5File
from kdkit.errors import CacheCorruptError, CacheError, CacheNotFoundError
from kdkit.runtime.reading import kind_of, open_descriptor, stranger

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEAD_BYTES = 64
_EMPTY = "is empty: the download or the copy did not begin, fetch it again"
_NOT_HDF5 = "is not an HDF5 file: a cache is one, made by `kdkit cache build`"


@contextmanager
def open_hdf5(path: Path, *, follow_links: bool = True) -> Iterator[CheckedHDF5File]:
    """The file at `path`, read-only and without locking.

    Args:
        path: the file.
        follow_links: whether `path` may be a symbolic link; a folder of shards holds none.

    Raises:
        CacheNotFoundError: there is none.
        CacheCorruptError: it is not a regular file, not HDF5, or reading it fails.
    """
    try:
        with _open(path, follow_links) as file:
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
        if error.errno == errno.ELOOP:
            raise CacheCorruptError(
                f"{str(path)!r} is a symbolic link, expected a file: copy what it points to"
            ) from None
        raise CacheCorruptError(f"{str(path)!r} cannot be read as a cache: {_one_line(error)}") from error
    except (RuntimeError, LookupError, ValueError, TypeError, MemoryError, OverflowError) as error:
        raise CacheCorruptError(f"{str(path)!r} cannot be read as a cache: {_one_line(error)}") from error


@contextmanager
def _open(path: Path, follow_links: bool) -> Iterator[h5py.File]:
    """Gives HDF5 only what is a regular file and begins as HDF5 does: no device, pipe or pickle.

    HDF5 opens what this opened, through its descriptor, and not what has the name by then.
    """
    descriptor = open_descriptor(path, follow_links=follow_links)
    try:
        found = os.fstat(descriptor)
        if (kind := kind_of(found.st_mode)) is not None:
            raise CacheCorruptError(f"{str(path)!r} is {kind}, not a regular file")
        if not (head := os.pread(descriptor, _HEAD_BYTES, 0)).startswith(_SIGNATURE):
            other = (stranger(head) if head else _EMPTY) or _NOT_HDF5
            raise CacheCorruptError(f"{str(path)!r} {other}")
        opened = f"/dev/fd/{descriptor}"
        try:
            file = h5py.File(opened if os.path.exists(opened) else path, "r", locking=False)  # noqa: PTH110
        except OSError:
            if os.fstat(descriptor).st_nlink == 0:  # replaced since: HDF5 wants a file with a name
                raise FileNotFoundError from None
            raise
    finally:
        os.close(descriptor)
    with file:
        if not os.path.samestat(os.fstat(file.id.get_vfd_handle()), found):
            raise FileNotFoundError
        yield file


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
