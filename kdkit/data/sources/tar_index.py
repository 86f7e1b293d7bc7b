"""The members of a tar in a file in the user's cache folder, so that a large tar is listed once, not at each opening.

The file is a copy of what the tar's headers say, never a second truth: it counts only while the tar's inode, size and
times are those of the listing, a damaged file is made again, and the header of a member is compared whenever the member
is read. It is in $XDG_CACHE_HOME/kdkit/tars, or ~/.cache/kdkit/tars, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np

from kdkit.data.sources.member import Kind, Member
from kdkit.errors import DatasetError, KdkitError
from kdkit.runtime import files
from kdkit.runtime.reading import read_bytes

_WORTH = 200
"""Members from which on a tar gets an index; a smaller one is listed within some hundredths of a second."""
_FORMAT = b"kdkit tar index 2\n"
_MAX_BYTES = 4 << 30
_SETTLED = 2.0
"""Seconds since the last change of a tar from which on its times tell any later change, whatever the file system."""
_KINDS: Sequence[Kind] = get_args(Kind)


def indexed(file: Path, tars: tuple[str, ...], list_tar: Callable[[], list[Member]]) -> list[Member]:
    """The members of the tar `file`: from its index if that is of this very file, else listed, and then indexed.

    Args:
        file: the tar.
        tars: the names that its members' keys begin with.
        list_tar: lists it; its errors are raised.
    """
    before, place = _stamp(file), _place(file)
    if before is None or place is None:
        return list_tar()
    if (found := _read(place, before, str(file), tars)) is not None:
        return found
    members = list_tar()
    if len(members) >= _WORTH and before == _stamp(file) and _is_settled(before):
        with suppress(KdkitError, OSError, ValueError):  # a read-only home, a full disk: it is listed again next time
            files.make_folder(place.parent)
            files.write_bytes(place, _pack(members, before, len(tars)))
    return members


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Inode, size and times of a file, of which the last one changes with any write, also where mtime is set back."""
    try:
        status = file.stat()
    except OSError:
        return None  # listing it says why
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_settled(stamp: tuple[int, ...]) -> bool:
    return max(stamp[2:]) < (time.time() - _SETTLED) * 1e9


def _place(file: Path) -> Path | None:
    """The index of a tar; None for a user without a home."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(root).is_absolute():  # as the XDG specification has it
        root = os.path.expanduser("~/.cache")  # noqa: PTH111
    if not Path(root).is_absolute():
        return None
    name = hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()[:32]
    return Path(root, "kdkit", "tars", f"{name}.index")


def _pack(members: Sequence[Member], stamp: tuple[int, ...], depth: int) -> bytes:
    """The members without what the path of the tar decides, as columns, with the CRC-32 of all of it."""
    inner = sorted({member.tars[depth:] for member in members})
    places = {tars: place for place, tars in enumerate(inner)}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        stamp=_texts([str(number) for number in stamp]),
        inner=_texts(["\n".join(map(_escape, tars)) for tars in inner]),
        names=_texts([member.name for member in members]),
        tars=np.array([places[member.tars[depth:]] for member in members], dtype=np.uint32),
        numbers=np.array([(member.offset, member.size, member.header_size) for member in members], dtype=np.uint64),
        headers=np.array([member.header for member in members], dtype=np.uint32),
        kinds=np.array([_KINDS.index(member.kind) for member in members], dtype=np.uint8),
    )
    content = buffer.getvalue()
    return _FORMAT + zlib.crc32(content).to_bytes(4, "little") + content


def _read(place: Path, stamp: tuple[int, ...], file: str, tars: tuple[str, ...]) -> list[Member] | None:
    """The members that the index at `place` holds; None without an index, or if it is damaged or of another file."""
    try:
        content = read_bytes(place, limit=_MAX_BYTES)
        start = len(_FORMAT) + 4
        if content[:start] != _FORMAT + zlib.crc32(content[start:]).to_bytes(4, "little"):
            return None
        with np.load(io.BytesIO(content[start:]), allow_pickle=False) as arrays:
            if _split(arrays["stamp"]) != [str(number) for number in stamp]:
                return None
            inner = [(*tars, *map(_unescape, text.split("\n") if text else ())) for text in _split(arrays["inner"])]
            columns = [arrays[name].tolist() for name in ("tars", "numbers", "headers", "kinds")]
            names = _split(arrays["names"])
        return [
            Member.of(file, inner[tar], name, offset, size, _KINDS[kind], header, header_size)
            for name, tar, (offset, size, header_size), header, kind in zip(names, *columns, strict=True)
        ]
    except (KdkitError, OSError, ValueError, LookupError, TypeError, EOFError, zlib.error, zipfile.BadZipFile):
        return None


def _texts(texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Texts without NUL, which no name in a tar has, as compressed bytes."""
    if any("\0" in text for text in texts):
        raise DatasetError("a name in the tar holds NUL")
    return np.frombuffer(zlib.compress("\0".join(texts).encode("utf-8", "surrogateescape"), 1), dtype=np.uint8)


def _split(packed: np.ndarray[Any, np.dtype[np.uint8]]) -> list[str]:
    return zlib.decompress(packed.tobytes()).decode("utf-8", "surrogateescape").split("\0")


def _escape(name: str) -> str:
    return name.replace("\\", "\\\\").replace("\n", "\\n")


def _unescape(text: str) -> str:
    return "\\".join(part.replace("\\n", "\n") for part in text.split("\\\\"))
