"""The one opener of files that are not ours: regular files only, bounded in size, refused in one line that names them.

A cache, a card, a class map, a checkpoint, a description of a student or a configuration may come from anywhere. A pipe
would wait for a writer for ever, a device may never end. So every file is opened without blocking, and what was opened
is looked at, not what stood under its name a moment earlier.

    read_json(path, limit=1 << 20, error=CheckpointError)     parsed, bounded by kdkit.runtime.documents
    read_yaml(path, limit=1 << 16)
    read_bytes(path, limit=...), read_text(path, limit=...)
    with open_regular(path) as file: ...                      for a file too large to read at once
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from kdkit.errors import ConfigError, KdkitError, first_line
from kdkit.runtime.documents import MAX_ITEMS, Make, parse_json, parse_yaml

MAX_CONFIG_BYTES = 1 << 18
"""Default limit of a document: a card has about 2 kB, the configuration of a run 4 kB."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_HEAD_BYTES = 64
_STRANGERS = {
    (b"version https://git-lfs",): "is a pointer of git-lfs, not the file itself: run git lfs pull",
    (b"<!doctype", b"<html", b"<?xml"): "is a web page: download the file itself, not the page that shows it",
}
"""How a file begins, in lower case and without leading blanks -> what it is, and what to do."""


@contextmanager
def open_regular(path: str | Path, *, error: Make = ConfigError, follow_links: bool = True) -> Iterator[BinaryIO]:
    """Yields the regular file at `path`, open for reading in binary mode; never waits, whatever stands at `path`.

    An OSError while the file is open becomes an error of class `error` as well.

    Args:
        path: the file.
        error: class of the error.
        follow_links: whether `path` may be a symbolic link to a regular file.

    Raises:
        KdkitError: of class `error`, in one line that names the file: it is missing, may not be read, or is not a
            regular file, or what was downloaded in its place. `__cause__` is the OSError, if there was one.
    """
    shown = shown_path(path)
    try:
        descriptor = open_descriptor(path, follow_links=follow_links)
        if (kind := kind_of(os.fstat(descriptor).st_mode)) is not None:
            os.close(descriptor)
            raise error(f"{shown} is {kind}, expected a regular file")
        with open(descriptor, "rb") as file:
            if (other := stranger(file.peek(_HEAD_BYTES))) is not None:
                raise error(f"{shown} {other}")
            yield file
    except KdkitError:
        raise
    except FileNotFoundError as found:
        raise error(f"there is no file {shown}") from found
    except OSError as found:
        raise error(f"{shown} cannot be read: {found.strerror or first_line(found)}") from found
    except ValueError as found:
        if "null" not in str(found):  # not about the path, but of whoever reads the file
            raise
        raise error(f"{shown} cannot be read: no file has such a name") from found


def open_descriptor(path: str | Path, *, follow_links: bool = True) -> int:
    """A descriptor of whatever is at `path`, for reading, without waiting for anything; the caller closes it.

    Raises:
        OSError: there is nothing, or it may not be read.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    return os.open(path, flags if follow_links else flags | os.O_NOFOLLOW)


def open_binary(path: str | Path, *, is_known: bool = False) -> BinaryIO:
    """Opens a regular file for reading as the built-in `open` does, but never waits, whatever stands at `path`.

    Args:
        path: the file.
        is_known: whether it was opened before, so that its beginning need not be looked at.

    Raises:
        OSError: it is missing, may not be read, is not a regular file, or is what was downloaded in its place.
    """

    def opener(name: str, flags: int) -> int:
        descriptor = open_descriptor(name)
        if (kind := kind_of(os.fstat(descriptor).st_mode)) is not None:
            os.close(descriptor)
            raise OSError(errno.EINVAL, f"it is {kind}, expected a regular file", str(path))
        return descriptor

    file = open(path, "rb", opener=opener)  # noqa: SIM115 -- the caller closes it
    if not is_known and (other := stranger(file.peek(_HEAD_BYTES))) is not None:
        file.close()
        raise OSError(errno.EINVAL, f"it {other}", str(path))
    return file


def stranger(head: bytes) -> str | None:
    """What a file is that was downloaded in place of another, by its first bytes, and what to do; None if it may be it.

    No format that kdkit reads begins so.
    """
    start = head[:_HEAD_BYTES].lstrip().lower()
    return next((text for marks, text in _STRANGERS.items() if start.startswith(marks)), None)


def kind_of(mode: int) -> str | None:
    """What is not a regular file, in words; None for a regular file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def read_bytes(path: str | Path, *, limit: int, error: Make = ConfigError) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        KdkitError: of class `error`, in one line that names the file; as for `open_regular`, or it is larger.
    """
    with open_regular(path, error=error) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(limit + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise error(f"{shown_path(path)} has {max(size, len(content)):,} bytes, expected at most {limit:,}")
    return content


def read_text(path: str | Path, *, limit: int, error: Make = ConfigError) -> str:
    """The text of a regular file in UTF-8 of at most `limit` bytes; errors as for `read_bytes`."""
    try:
        return read_bytes(path, limit=limit, error=error).decode("utf-8-sig")  # Windows writes a mark at the beginning
    except UnicodeDecodeError as found:
        raise error(f"{shown_path(path)} is not text in UTF-8 ({first_line(found)}): save it as UTF-8") from None


def read_json(
    path: str | Path, *, limit: int = MAX_CONFIG_BYTES, error: Make = ConfigError, max_items: int = MAX_ITEMS
) -> Any:
    """The value of a JSON file of at most `limit` bytes, bounded as `parse_json` says; errors as for `read_bytes`."""
    content = read_bytes(path, limit=limit, error=error)
    return parse_json(content, shown_path(path), error=error, max_items=max_items)


def read_yaml(
    path: str | Path,
    *,
    limit: int = MAX_CONFIG_BYTES,
    error: Make = ConfigError,
    max_items: int = MAX_ITEMS,
    max_aliases: int = 0,
) -> Any:
    """The value of a YAML file of at most `limit` bytes, bounded as `parse_yaml` says; errors as for `read_bytes`."""
    content = read_bytes(path, limit=limit, error=error)
    return parse_yaml(content, shown_path(path), error=error, max_items=max_items, max_aliases=max_aliases)


def shown_path(path: str | Path) -> str:
    """The path in quotes, for an error; a control character in it is escaped."""
    return repr(str(path))
