"""One writer per cache: a lock that its owner's death releases, and that names its owner."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdkit.cache.write_errors import check_not_full
from kdkit.errors import CacheError, CacheLockedError
from kdkit.runtime import files
from kdkit.runtime.lock import kept_from_children
from kdkit.runtime.reading import kind_of, read_json

LOCK_NAME = "lock"
_MAX_OWNER, _MAX_HOST = 4096, 255  # bytes, characters
_logger = logging.getLogger(__name__)


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Holds `folder`/lock; the operating system releases it when this process dies, in whatever way.

    The file names process and host. It is emptied on a clean end, so a name in a lock that no process holds is that of
    a writer that died: its work is taken over, with a warning. Of a folder that holds nothing but the lock then, both
    are removed. Processes that this one forks close their copy, so loader workers that outlive a killed writer hold
    no lock.

    Raises:
        CacheLockedError: another process holds it, or has just removed it with the folder.
        CacheDiskFullError: there is no room for the owner's name.
        CacheError: the file system cannot lock it, or not write it.
    """
    path = folder / LOCK_NAME
    descriptor = _open(path)
    owner = os.getpid()
    with kept_from_children(descriptor):
        _take(descriptor, path)
        if os.fstat(descriptor).st_size:
            _logger.warning("the cache in %s was left by %s, which died: resuming it", folder, _owner(path))
        _name_owner(descriptor, path)
        try:
            yield
        finally:
            if os.getpid() == owner:  # a forked process has closed it
                _release(descriptor, path)


def _name_owner(descriptor: int, path: Path) -> None:
    owner = json.dumps({"process": os.getpid(), "host": platform.node()}).encode()
    try:
        os.ftruncate(descriptor, 0)
        if os.write(descriptor, owner) < len(owner):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        check_not_full(path, error)
        raise CacheError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def _release(descriptor: int, path: Path) -> None:
    """Empties the lock, and removes it with its folder if that holds nothing else; failures hide no other error."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        if _stands(descriptor, path) and os.listdir(path.parent) == [path.name]:  # noqa: PTH208
            files.remove_file(path)
            os.rmdir(path.parent)  # noqa: PTH106


def _open(path: Path) -> int:
    """Opens the file, or creates it; never follows a link, because the file is emptied."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
    except FileNotFoundError:  # with the folder: the writer has packed the cache, and removed both
        raise _finished(path) from None
    except OSError as error:
        check_not_full(path, error)
        raise CacheError(f"{str(path)!r} cannot be locked: {error.strerror}; expected a file of this folder") from error
    if (kind := kind_of(os.fstat(descriptor).st_mode)) is not None:
        os.close(descriptor)
        raise CacheError(f"{str(path)!r} cannot be locked: it is {kind}; expected a file of this folder")
    return descriptor


def _take(descriptor: int, path: Path) -> None:
    """Locks the file, without waiting."""
    shown = repr(str(path.parent))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CacheLockedError(
            f"the cache in {shown} is being written by {_owner(path)}: wait for it, or stop it"
        ) from None
    except OSError as error:
        raise CacheError(f"{str(path)!r} cannot be locked: {error.strerror}; use a file system that can") from error
    if not _stands(descriptor, path):
        raise _finished(path)


def _finished(path: Path) -> CacheLockedError:
    return CacheLockedError(f"the cache in {str(path.parent)!r} was just finished by another process: run again")


def _stands(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    try:
        owner = read_json(path, limit=_MAX_OWNER, error=CacheError)
        return f"process {int(owner['process'])} on host {str(owner['host'])[:_MAX_HOST]!r}"
    except (CacheError, ValueError, KeyError, TypeError):
        return "an unknown process"
