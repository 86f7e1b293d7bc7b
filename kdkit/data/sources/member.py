"""Members of tar files by their offsets, so that they are read in any order without unpacking.

A tar within a tar is not compressed, so the place of an image is an offset and a size in the outermost file. No
handle is kept: a forked worker would move the file position of its parent.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from kdkit.data.sources.image import decode, suffix_of, unreadable
from kdkit.data.sources.listing import inner_path, is_ignored, natural_order
from kdkit.errors import DatasetError
from kdkit.runtime.reading import open_binary

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """The position of one entry of a tar."""

    file: str
    """Path of the outermost tar."""
    tars: tuple[str, ...]
    """Names of the tars that it is in, below the root, outermost first."""
    name: str
    """Name in the innermost tar."""
    path: str
    """Path below the top of the innermost tar."""
    offset: int
    """First byte of its content in the outermost tar."""
    size: int
    """Length of its content, bytes."""
    kind: Literal["file", "folder", "link"] = "file"
    """Whether it has content."""

    @property
    def key(self) -> str:
        """The names of the tars and its own, joined by slashes."""
        return "/".join((*self.tars, self.name))

    def read(self) -> bytes:
        """Its content."""
        with open_binary(self.file) as file:
            file.seek(self.offset)
            return file.read(self.size)


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
        try:
            with open_binary(file) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                found += _members_of(tar, str(file), (file.name,) if path.is_dir() else (), 0)
        except (OSError, tarfile.TarError, ValueError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"no images can be listed in the tar {str(file)!r}: {error}") from error
    return found


def read_image(member: Member, key: str, origin: str) -> Image.Image:
    """The RGB image of a member.

    Raises:
        DatasetError: it is unreadable; names it.
    """
    try:
        content = member.read()
    except OSError as error:
        raise unreadable(key, origin, error) from None
    return decode(io.BytesIO(content), key, origin)


def _members_of(tar: tarfile.TarFile, file: str, tars: tuple[str, ...], start: int) -> Iterator[Member]:
    origin = "/".join((file, *tars[1:]))
    yield Member(file, tars, ".", ".", start, 0, "folder")
    while (info := tar.next()) is not None:
        vars(tar)["members"] = []  # tarfile keeps every member, a kilobyte for each
        path = inner_path(info.name, origin)
        if info.isdir():
            yield Member(file, tars, info.name, path, start, 0, "folder")
        elif info.issym() or info.islnk():
            yield Member(file, tars, info.name, path, start, 0, "link")
        elif info.isfile() and suffix_of(info.name) == ".tar" and not is_ignored(path):
            with tarfile.open(fileobj=tar.extractfile(info), mode="r:") as inner:
                yield from _members_of(inner, file, (*tars, info.name), start + info.offset_data)
        elif info.isfile():
            yield Member(file, tars, info.name, path, start + info.offset_data, info.size)
    assert tar.fileobj is not None
    _check_end(tar.fileobj, tar.offset, origin)


def _check_end(stream: Any, offset: int, origin: str) -> None:
    """Raises DatasetError unless the tar ends in zeros at `offset`; tarfile stops at damage without an error."""
    stream.seek(offset)
    part = stream.read(tarfile.BLOCKSIZE)
    if len(part) < tarfile.BLOCKSIZE or part.strip(b"\0"):
        raise DatasetError(f"the tar {origin!r} is truncated or damaged after {offset:,} bytes: pack it again")
    while part := stream.read(_CHUNK):
        if part.strip(b"\0"):
            raise DatasetError(
                f"the tar {origin!r} goes on after its end at {offset:,} bytes, as tars do that were joined: pack its "
                "images again, or give the tars one by one"
            )
