"""One writer a cache: a lock that its owner's death releases, and that says who owns it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdkit.errors import CacheLockedError

LOCK_NAME = "lock"
_logger = logging.getLogger(__name__)


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Holds `folder`/lock; the operating system lets go of it when this process dies, however it dies.

    The file names process and host. It is emptied on a clean end, so that a name in a lock that nobody holds is that of
    a writer that died: its work is taken over, with a warning.

    Raises:
        CacheLockedError: another process holds it; named with its host.
    """
    path = folder / LOCK_NAME
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CacheLockedError(
                f"the cache in {str(folder)!r} is being written by {_owner(path)}: wait for it, or stop it"
            ) from None
        if path.stat().st_size:
            _logger.warning("the cache in %s was left by %s, which died: going on with it", folder, _owner(path))
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": platform.node()}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['process']} on host {owner['host']!r}"
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process"
