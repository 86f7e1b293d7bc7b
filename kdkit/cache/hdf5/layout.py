"""The layout of a cache file: all of HDF5's own bytes, made in memory.

HDF5 never writes to a disk here, so it never meets a full one: it lays the file out in a sparse buffer, and the bytes
go to the disk through plain writes, whose errors are plain. A layout of terabytes costs some kilobytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

_PAGE = 4096


@dataclass(frozen=True)
class Layout:
    """The offset of everything in a file.

    Attributes:
        num_bytes: size of the whole file.
        pieces: (offset, bytes) of HDF5's own structures; zeros may be left out.
        offsets: dataset -> offset of its bytes; 0 if it has none.
    """

    num_bytes: int
    pieces: tuple[tuple[int, bytes], ...]
    offsets: Mapping[str, int]


def lay_out(
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], set_attributes: Callable[[h5py.File], None]
) -> Layout:
    """The layout of a file with these contiguous datasets, given as (shape, dtype), and attributes."""
    buffer = _SparseBuffer()
    with h5py.File(buffer, "w", libver="v110") as file:
        set_attributes(file)
        offsets = {name: _allocate(file, name, *shape) for name, shape in shapes.items()}
    return Layout(buffer.num_bytes, tuple(buffer.pieces()), offsets)


def write_document(file: h5py.File, name: str, text: str) -> None:
    """Stores a text and the CRC-32 of its UTF-8 bytes as root attributes `name` and `name`_crc32."""
    write_text(file, name, text)
    file.attrs.create(f"{name}_crc32", np.uint32(zlib.crc32(text.encode())))


def write_text(file: h5py.File, name: str, text: str) -> None:
    """Stores a text as a root attribute of fixed length, whose size is known before it is read."""
    content = text.encode()
    file.attrs.create(name, np.array(content, dtype=h5py.string_dtype("utf-8", len(content))))


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Makes an unwritten contiguous dataset and returns its offset in the file."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, plist, links)
    offset = dataset.get_offset()
    return 0 if offset is None else int(offset)


class _SparseBuffer:
    """A file object in memory for h5py; pages that were never written take no memory."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._position = 0
        self._pages: dict[int, bytearray] = {}

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of every written page, in order."""
        for number in sorted(self._pages):
            yield number * _PAGE, bytes(self._pages[number][: self.num_bytes - number * _PAGE])

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self.num_bytes)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Does nothing: no write is buffered."""

    def truncate(self, num_bytes: int) -> int:
        self.num_bytes = num_bytes
        return num_bytes

    def read(self, length: int) -> bytes:
        content = bytearray(length)
        self.readinto(memoryview(content))
        return bytes(content)

    def readinto(self, target: memoryview) -> int:
        done = 0
        for page, first, count in self._spans(len(target)):
            target[done : done + count] = self._pages.get(page, bytes(_PAGE))[first : first + count]
            done += count
        self._position += done
        return done

    def write(self, source: memoryview) -> int:
        done = 0
        for page, first, count in self._spans(len(source)):
            self._pages.setdefault(page, bytearray(_PAGE))[first : first + count] = source[done : done + count]
            done += count
        self._position += done
        self.num_bytes = max(self.num_bytes, self._position)
        return done

    def _spans(self, length: int) -> Iterator[tuple[int, int, int]]:
        """(page, first byte in it, count) of `length` bytes from the position on."""
        offset, end = self._position, self._position + length
        while offset < end:
            page, first = divmod(offset, _PAGE)
            count = min(_PAGE - first, end - offset)
            yield page, first, count
            offset += count
