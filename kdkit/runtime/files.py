"""Atomic, durable file writes.

A file is written under a private temporary name, fsynced, renamed into place, and its folder fsynced. Checkpoints,
caches and reports go through these few calls, so that a test can record them and simulate the loss of any of them.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdkit.errors import DiskFullError, KdkitError, WriteError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CANNOT_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS}
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
TEMPORARY_SUFFIX = ".tmp"
_MAX_NAME_BYTES = 255


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write and fsync; afterwards that file is at `path`, durably, or not at all.

    If a file is replaced, there is always a complete one: the new one stays even if its folder could not be fsynced.

    Raises:
        DiskFullError: there was no space; the temporary file is removed.
        WriteError: the file system refused; the temporary file is removed.
    """
    temporary = _temporary_name(path)
    try:
        yield temporary
        _sync(temporary)
        replaces = os.path.lexists(path)
        os.replace(temporary, path)  # noqa: PTH105 -- the system calls by their names: see the module's docstring
        try:
            _sync(path.parent)
        except OSError as error:
            if replaces:  # either file is whole, so whichever a power loss leaves will do; the old one is gone
                raise write_error(path, error, "the new file is in place, but a power loss may undo it") from error
            remove_file(path)  # it may not survive a power loss, so nothing may build on it
            raise
    except KdkitError:
        raise
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # the first error tells more; the next writer removes leftovers
            remove_file(temporary)


@contextmanager
def typed_errors(path: Path) -> Iterator[None]:
    """Within it, what the file system refuses while `path` is extended or rewritten is a WriteError.

    Raises:
        DiskFullError: there was no space.
        WriteError: the file system refused.
    """
    try:
        yield
    except KdkitError:
        raise
    except OSError as error:
        raise write_error(path, error, "what it held is there") from error


def write_error(path: Path, error: OSError, state: str = "nothing was kept") -> WriteError:
    """The typed error for a write to `path` that the file system refused; `state` describes what is there now."""
    if error.errno == errno.ENOENT and not path.parent.exists():
        return WriteError(f"{str(path)!r} could not be written: its folder was removed, or moved, in the meantime")
    if error.errno in _NO_ROOM:
        return DiskFullError(f"no room for {str(path)!r}: {os.strerror(error.errno)}; free space and run again")
    return WriteError(f"{str(path)!r} could not be written: {error.strerror or error}; {state}")


@contextmanager
def new_file(path: Path, num_bytes: int) -> Iterator[int]:
    """Yields the descriptor of a new file whose space is reserved at once, so that a full disk shows; fsynced at exit.

    Raises:
        OSError: there is not enough space, or a file exists at `path`.
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
        os.fsync(descriptor)  # the descriptor that wrote is sure to see every write error
    finally:
        os.close(descriptor)


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> int:
    """Writes all of `content` at `offset`, repeating short writes, and returns the number of bytes."""
    view = memoryview(content)
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)
    return done


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, durably and atomically.

    Raises:
        WriteError: as for `atomic_write`.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, durably and atomically; removes what a killed writer of `path` has left.

    Raises:
        WriteError: as for `atomic_write`.
    """
    remove_leftovers(path.parent, path.name)
    with atomic_write(path) as temporary, new_file(temporary, len(content)) as descriptor:
        write_at(descriptor, content, 0)


def share(path: Path) -> None:
    """Gives a file that others may not read, as safetensors writes it, the mode of any new file in its folder.

    Raises:
        OSError: the file system refused.
    """
    new = _temporary_name(path)
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.chmod(path, os.fstat(descriptor).st_mode)  # noqa: PTH101
    finally:
        os.close(descriptor)
        remove_file(new)


def make_folder(folder: Path) -> None:
    """Makes `folder` and its missing parents, each durably.

    Raises:
        WriteError: it cannot be made.
    """
    try:
        missing = [place for place in (folder, *folder.parents) if not place.is_dir()]
        for place in reversed(missing):
            with suppress(FileExistsError):  # another rank was faster
                os.mkdir(place)  # noqa: PTH102
            _sync(place.parent)
    except OSError as error:
        raise write_error(folder, error) from error


def rename(path: Path, target: Path) -> None:
    """Makes the finished file at `path` the one at `target`, durably; a file there is replaced in one step.

    Raises:
        WriteError: the file system refused.
    """
    try:
        os.replace(path, target)  # noqa: PTH105
        _sync(target.parent)
    except OSError as error:
        raise write_error(target, error, "either file is complete") from error


def remove_folder(folder: Path) -> None:
    """Removes a folder of files, a cache's index first: if the removal stops midway, the rest is not a cache.

    Raises:
        WriteError: a file in it cannot be removed.
    """
    try:
        for file in sorted(folder.iterdir(), key=lambda file: (file.suffix != ".h5", file.name)):
            remove_file(file)
        os.rmdir(folder)  # noqa: PTH106
    except KdkitError:
        raise
    except OSError as error:
        raise WriteError(f"{str(folder)!r} could not be removed: {error.strerror}; remove it by hand") from error


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Removes temporary files of writers that died, as far as it may: those of the file called `name`, or all."""
    pattern = f".{glob.escape(name)}.{'[0-9a-f]' * 12}" if name else ".*"
    with suppress(OSError):  # a read-only folder; whoever writes there finds out
        for leftover in folder.glob(f"{pattern}{TEMPORARY_SUFFIX}"):
            remove_file(leftover)


def check_writable(folder: Path) -> None:
    """Makes a file in `folder` that has no name, so that no kill leaves it; with a name only where that is impossible.

    Raises:
        OSError: `folder` cannot be written.
    """
    if unnamed := getattr(os, "O_TMPFILE", 0):
        try:
            os.close(os.open(folder, unnamed | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except OSError as error:
            if error.errno not in _CANNOT_UNNAMED:
                raise
        else:
            return
    place = folder / f".{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"
    place.touch(exist_ok=False)
    place.unlink()


def remove_file(path: Path) -> None:
    """Removes a file, if it is there.

    Raises:
        WriteError: it cannot be removed.
    """
    try:
        os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        pass
    except OSError as error:
        if os.path.lexists(path):  # a read-only file system refuses what is not there as well
            raise WriteError(f"{str(path)!r} could not be removed: {error.strerror}; remove it by hand") from error


def _temporary_name(path: Path) -> Path:
    """A private name in the same folder that holds the name of `path`, cut to the length that a name may have."""
    ending = f".{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"
    name = os.fsencode(path.name)[: _MAX_NAME_BYTES - 1 - len(ending)]
    return path.with_name("." + name.decode("utf-8", "ignore") + ending)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
