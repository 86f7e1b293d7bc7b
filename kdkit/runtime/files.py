"""Files that are either wholly there or not there at all, also after a crash.

A file is written under a private temporary name, fsynced, renamed into place, and its folder fsynced. Everything that a
cache writes goes through these few calls, so that a test can record them and lose any of them.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdkit.errors import CacheDiskFullError, CacheError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
TEMPORARY_SUFFIX = ".tmp"
_MAX_NAME_BYTES = 255


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write and fsync; afterwards that file stands at `path`, durably, or not at all.

    Where a file is replaced there is always a whole one: the new one stays even if its folder could not be fsynced.

    Raises:
        CacheDiskFullError: there was no room; the temporary file is removed.
        CacheError: the file system refused; the temporary file is removed.
    """
    temporary = _temporary_name(path)
    try:
        yield temporary
        _sync(temporary)
        replaces = os.path.lexists(path)
        os.replace(temporary, path)  # noqa: PTH105 -- the calls of the system, by their names: see the module's docstring
        try:
            _sync(path.parent)
        except OSError as error:
            if replaces:  # either file is whole, so whichever a power loss leaves will do; the old one is gone by now
                raise failure(path, error, "the new file stands, but a power loss may undo it") from error
            remove_file(path)  # it may not survive a power loss, so nobody may build on it
            raise
    except CacheError:
        raise
    except OSError as error:
        raise failure(path, error) from error
    finally:
        with suppress(OSError):  # what went wrong before says more; the next writer removes leftovers
            remove_file(temporary)


def failure(path: Path, error: OSError, left: str = "nothing of it was kept") -> CacheError:
    """The typed error for a write to `path` that the file system refused; `left` says what stands there now."""
    if error.errno in _NO_ROOM:
        return CacheDiskFullError(f"no room for {str(path)!r}: {os.strerror(error.errno)}; free space and run again")
    return CacheError(f"{str(path)!r} could not be written: {error.strerror or error}; {left}")


@contextmanager
def new_file(path: Path, num_bytes: int) -> Iterator[int]:
    """Yields the descriptor of a new file whose room on the disk is taken at once, so that a full disk shows; fsynced.

    Raises:
        OSError: there is no such room, or something stands at `path`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            os.posix_fallocate(descriptor, 0, max(1, num_bytes))
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
            os.ftruncate(descriptor, num_bytes)
        yield descriptor
        os.fsync(descriptor)  # by the descriptor that wrote, which is sure to be told of every error
    finally:
        os.close(descriptor)


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> int:
    """Writes all of `content` at `offset` and returns its number of bytes; a short write is gone on with."""
    view = memoryview(content)
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)
    return done


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, durably and atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, durably and atomically."""
    with atomic_write(path) as temporary, new_file(temporary, len(content)) as descriptor:
        write_at(descriptor, content, 0)


def make_folder(folder: Path) -> None:
    """Makes `folder` and what it lies in, each entered durably.

    Raises:
        CacheError: it cannot be made.
    """
    try:
        missing = [place for place in (folder, *folder.parents) if not place.is_dir()]
        for place in reversed(missing):
            with suppress(FileExistsError):  # another rank was faster
                os.mkdir(place)  # noqa: PTH102
            _sync(place.parent)
    except OSError as error:
        raise failure(folder, error) from error


def remove_folder(folder: Path) -> None:
    """Removes a folder of files, the index first: what is left of it is then no cache, whenever it stops.

    Raises:
        CacheError: something in it cannot be removed.
    """
    try:
        for file in sorted(folder.iterdir(), key=lambda file: (file.suffix != ".h5", file.name)):
            remove_file(file)
        os.rmdir(folder)  # noqa: PTH106
    except OSError as error:
        raise CacheError(f"{str(folder)!r} could not be removed: {error.strerror}; remove it by hand") from error


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Removes temporary files of writers that died: those of the file called `name`, or all."""
    mine = f".{glob.escape(name)}.{'[0-9a-f]' * 12}" if name else ".*"
    for leftover in folder.glob(f"{mine}{TEMPORARY_SUFFIX}"):
        remove_file(leftover)


def check_writable(folder: Path) -> None:
    """Writes a file and removes it.

    Raises:
        OSError: `folder` cannot be written.
    """
    place = folder / f".{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"
    place.touch(exist_ok=False)
    place.unlink()


def _temporary_name(path: Path) -> Path:
    """A private name beside `path` that tells whose it is, and is no longer than a name may be."""
    ending = f".{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"
    name = os.fsencode(path.name)[: _MAX_NAME_BYTES - 1 - len(ending)]
    return path.with_name("." + name.decode("utf-8", "ignore") + ending)


def remove_file(path: Path) -> None:
    """Removes a file, if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
