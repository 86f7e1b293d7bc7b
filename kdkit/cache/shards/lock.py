"""One writer per cache: a lock that its owner's death releases, and that names its owner."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from kdkit.cache.write_errors import check_not_full
from kdkit.errors import CacheError, CacheLockedError

LOCK_NAME = "lock"
_MAX_OWNER = 4096  # characters
_logger = logging.getLogger(__name__)


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Holds `folder`/lock; the operating system releases it when this process dies, in whatever way.

    The file names process and host. It is emptied on a clean end, so a name in a lock that no process holds is that of
    a writer that died: its work is taken over, with a warning.

    Raises:
        CacheLockedError: another process holds it, or has just removed it with the folder.
        CacheError: the file system cannot lock it.
    """
    path = folder / LOCK_NAME
    with _open(path) as file:
        _take(file, path)
        if os.fstat(file.fileno()).st_size:
            _logger.warning("the cache in %s was left by %s, which died: resuming it", folder, _owner(path))
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": platform.node()}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _open(path: Path) -> TextIO:
    """Opens the file, or creates it; never follows a link, because the file is emptied."""
    try:
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "it is not a file")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:  # with the folder: the writer has packed the cache, and removed both
        raise _finished(path) from None
    except OSError as error:
        check_not_full(path, error)
        raise CacheError(f"{str(path)!r} cannot be locked: {error.strerror}; expected a file of this folder") from error
    return open(descriptor, "a+", encoding="utf-8")


def _take(file: TextIO, path: Path) -> None:
    """Locks the file, without waiting."""
    shown = repr(str(path.parent))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CacheLockedError(
            f"the cache in {shown} is being written by {_owner(path)}: wait for it, or stop it"
        ) from None
    except OSError as error:
        raise CacheError(f"{str(path)!r} cannot be locked: {error.strerror}; use a file system that can") from error
    if not _stands(file, path):
        raise _finished(path)


def _finished(path: Path) -> CacheLockedError:
    return CacheLockedError(f"the cache in {str(path.parent)!r} was just finished by another process: run again")


def _stands(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            owner = json.loads(file.read(_MAX_OWNER))
        return f"process {owner['process']} on host {owner['host']!r}"
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process"
