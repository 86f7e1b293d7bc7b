"""Locks of the operating system: the death of their owner releases them, and no process that it forks keeps them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdkit.errors import OutputError, OutputExistsError

_held: set[int] = set()
"""Descriptors of the locks of this process."""


def _close_in_child() -> None:
    """A lock belongs to an open file, which a forked process shares: it ends when the last of them closes it."""
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def kept_from_children(descriptor: int) -> Iterator[None]:
    """Within the context, processes that this one forks close the descriptor; at its end this one does."""
    _held.add(descriptor)
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:  # a forked process has closed it
            _held.discard(descriptor)
            os.close(descriptor)


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; it leaves no file there. A file system without locks is let be.

    Raises:
        OutputExistsError: another process holds it.
        OutputError: it cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(f"the output folder {str(folder)!r} cannot be opened: {error.strerror}") from error
    with kept_from_children(descriptor):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputExistsError(
                f"another process is writing to the output folder {str(folder)!r}: wait for it, or choose another one"
            ) from None
        except OSError:  # ENOLCK, EOPNOTSUPP
            pass
        yield
