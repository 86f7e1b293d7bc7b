"""Lists the members of tars, in the order of the tars and of their headers."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kdkit.data.sources.image import suffix_of
from kdkit.data.sources.listing import inner_path, is_ignored, natural_order
from kdkit.data.sources.member import Member
from kdkit.data.sources.tar_index import indexed
from kdkit.errors import DatasetError
from kdkit.runtime.reading import open_binary

_CHUNK = 1 << 20
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"(\xb5/\xfd")
"""What gzip, bzip2, xz and zstd begin a file with."""
_MAX_PADDING = 16 << 20  # bytes of zeros after the end; tar fills up blocks of at most a few MiB


def tar_files(path: Path) -> list[Path]:
    """The tars of a folder in natural order, or the tar itself."""
    if path.is_dir():
        found = (file for file in path.iterdir() if file.suffix.lower() == ".tar" and not is_ignored(file.name))
        return sorted(found, key=lambda file: natural_order(file.name))
    return [path]


def list_members(path: Path) -> list[Member]:
    """Everything in a tar, or in the tars of a folder, and in the tars within them; each tar itself as a folder ".".

    Raises:
        DatasetError: a file is not a tar, or is truncated or damaged.
    """
    found: list[Member] = []
    for file in tar_files(path):
        tars = (file.name,) if path.is_dir() else ()
        found += indexed(file, tars, partial(_list_one, file, tars))
    return found


def _list_one(file: Path, tars: tuple[str, ...]) -> list[Member]:
    """The members of one tar and of the tars within it, from their headers."""
    try:
        with open_binary(file) as stream, tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header) as tar:
            return list(_members_of(tar, str(file), tars, 0))
    except (OSError, tarfile.TarError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        reason = "it is compressed; unpack it to a .tar" if _is_compressed(file) else error
        raise DatasetError(f"no images can be listed in the tar {str(file)!r}: {reason}") from error


def _is_compressed(file: Path) -> bool:
    try:
        with open_binary(file) as stream:
            return stream.read(6).startswith(_COMPRESSED)
    except OSError:
        return False


class _Header(tarfile.TarInfo):
    """A header of a tar, with the CRC-32 of its 512 bytes."""

    crc32 = 0

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        found = super().frombuf(buf, encoding, errors)
        found.crc32 = zlib.crc32(buf)
        return found


def _members_of(tar: tarfile.TarFile, file: str, tars: tuple[str, ...], start: int) -> Iterator[Member]:
    origin = "/".join((file, *tars[1:]))
    yield Member(file, tars, ".", ".", start, 0, "folder")
    begin = 0  # of the member's headers
    while (info := tar.next()) is not None:
        vars(tar)["members"] = []  # tarfile keeps every member, a kilobyte for each
        path = inner_path(info.name, origin)
        assert isinstance(info, _Header)
        if info.issparse():
            raise DatasetError(f"{info.name!r} in the tar {origin!r} is a sparse file: pack it again without --sparse")
        if info.isdir():
            yield Member(file, tars, info.name, path, start, 0, "folder")
        elif info.issym() or info.islnk():
            yield Member(file, tars, info.name, path, start, 0, "link")
        elif info.isfile() and suffix_of(info.name) == ".tar" and not is_ignored(path):
            with tarfile.open(fileobj=tar.extractfile(info), mode="r:", tarinfo=_Header) as inner:
                yield from _members_of(inner, file, (*tars, info.name), start + info.offset_data)
        elif info.isfile():
            header, size = _header_of(info, tar, begin)
            yield Member(file, tars, info.name, path, start + info.offset_data, info.size, "file", header, size)
        begin = tar.offset
    assert tar.fileobj is not None
    _check_end(tar.fileobj, tar.offset, origin)


def _header_of(info: _Header, tar: tarfile.TarFile, begin: int) -> tuple[int, int]:
    """CRC-32 and length of a member's header, with the blocks before it: a long or Unicode name, a global header."""
    size = info.offset_data - begin
    if size == tarfile.BLOCKSIZE:
        return info.crc32, size
    assert tar.fileobj is not None
    tar.fileobj.seek(begin)  # tarfile seeks to the next header by itself
    return zlib.crc32(tar.fileobj.read(size)), size


def _check_end(stream: Any, offset: int, origin: str) -> None:
    """Raises DatasetError unless the tar ends in zeros at `offset`; tarfile stops at damage without an error."""
    stream.seek(offset)
    part = stream.read(tarfile.BLOCKSIZE)
    if len(part) < tarfile.BLOCKSIZE or part.strip(b"\0"):
        raise DatasetError(f"the tar {origin!r} is truncated or damaged after {offset:,} bytes: pack it again")
    padding = 0
    while part := stream.read(_CHUNK):
        padding += len(part)
        if part.strip(b"\0"):
            raise DatasetError(
                f"the tar {origin!r} goes on after its end at {offset:,} bytes, as tars do that were joined: pack its "
                "images again, or give the tars one by one"
            )
        if padding > _MAX_PADDING:
            raise DatasetError(
                f"the tar {origin!r} ends at {offset:,} bytes, and more than {_MAX_PADDING:,} zeros follow: its copy "
                "was perhaps not finished, copy it again"
            )
