"""A member of a tar file by its offset, so that members are read in any order without unpacking.

A tar within a tar is not compressed, so the place of an image is an offset and a size in the outermost file. No
handle is kept: a forked worker would move the file position of its parent.
"""

from __future__ import annotations

import errno
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Literal

from PIL import Image

from kdkit.data.sources.image import decode, unreadable
from kdkit.data.sources.listing import inner_path
from kdkit.runtime.reading import open_binary

Kind = Literal["file", "folder", "link"]


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
    kind: Kind = "file"
    """Whether it has content."""
    header: int = 0
    """CRC-32 of its header in the tar, with the blocks before it that belong to it, such as a long name; of a file."""
    header_size: int = tarfile.BLOCKSIZE
    """Length of that header, which ends where the content begins, bytes."""

    @classmethod
    def of(
        cls,
        file: str,
        tars: tuple[str, ...],
        name: str,
        offset: int,
        size: int,
        kind: Kind,
        header: int,
        header_size: int,
    ) -> Member:
        """The member of this name.

        Raises:
            DatasetError: the name leads out of the tar.
        """
        path = inner_path(name, "/".join((file, *tars[1:])))
        return cls(file, tars, name, path, offset, size, kind, header, header_size)

    @property
    def key(self) -> str:
        """The names of the tars and its own, joined by slashes."""
        return "/".join((*self.tars, self.name))

    def read(self) -> bytes:
        """Its content."""
        with open_binary(self.file, is_known=True) as file:
            return self.read_from(file)

    def read_from(self, file: BinaryIO) -> bytes:
        """Its content, from the open tar.

        Raises:
            OSError: the tar holds something else at its place: it was packed again since it was listed.
        """
        file.seek(self.offset - self.header_size)
        found = file.read(self.header_size + self.size)
        if len(found) < self.header_size + self.size or zlib.crc32(found[: self.header_size]) != self.header:
            raise OSError(errno.ESTALE, f"the tar {self.file!r} has changed since it was listed")
        return found[self.header_size :]


@contextmanager
def reading_in_order() -> Iterator[Callable[[Member], bytes]]:
    """Yields a function that reads members; it keeps the last tar open, so that neighbours are read at once."""
    opened: dict[str, BinaryIO] = {}
    with ExitStack() as stack:

        def read(member: Member) -> bytes:
            if member.file not in opened:
                stack.close()
                opened.clear()
                opened[member.file] = stack.enter_context(open_binary(member.file, is_known=True))
            return member.read_from(opened[member.file])

        yield read


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
