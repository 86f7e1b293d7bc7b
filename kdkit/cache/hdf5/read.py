"""Reading an HDF5 file that is not trusted.

HDF5 only gives offsets of members. Links are followed one by one and must be hard; a dataset must be contiguous, whole
inside the file, of a plain dtype and of exactly the expected shape, before one byte of it is read; and its bytes are
read through a memory map, so that no filter, plugin, external file or conversion of HDF5 ever runs.
"""

from __future__ import annotations

import itertools
import mmap
import os
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kdkit.cache.format.constants import ARRAYS_ATTRIBUTE
from kdkit.cache.format.json import check_component, parse_json, parse_sums
from kdkit.cache.hdf5.inspect import inspect_dataset, read_scalar
from kdkit.cache.types import Array
from kdkit.errors import CacheCorruptError

_LEARNT_DTYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<i8", "<f2", "<f4", "<f8")


class CheckedHDF5File:
    """An open HDF5 file of which only members requested by name are read.

    Attributes:
        path: where it is.
        num_bytes: its size when it was opened.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        descriptor = file.id.get_vfd_handle()
        self.num_bytes = os.fstat(descriptor).st_size
        self.mapping = mmap.mmap(descriptor, self.num_bytes, access=mmap.ACCESS_READ)
        self._root: Any = h5py.h5g.open(file.id, b"/")
        self._groups: dict[str, Any] = {"": self._root}
        self._taken: list[tuple[int, int, str]] = []
        self._sums: dict[str, int] | None = None

    def has_document(self, name: str) -> bool:
        """Whether the root has an attribute of this name."""
        return bool(h5py.h5a.exists(self._root, name.encode()))

    def document(self, name: str) -> str:
        """The text of root attribute `name`, its type, size and checksum verified."""
        if not self.has_document(name) or not self.has_document(f"{name}_crc32"):
            raise CacheCorruptError(
                f"{str(self.path)!r} is an HDF5 file, but no kdkit cache: attribute {name!r} or its CRC-32 is missing"
            )
        content = read_scalar(self._root, name, str(self.path), text=True)
        if zlib.crc32(content) != int(read_scalar(self._root, f"{name}_crc32", str(self.path), text=False)):
            raise CacheCorruptError(f"{str(self.path)!r}: attribute {name!r} does not match its checksum")
        return str(content.decode())

    def text(self, name: str) -> str:
        """The text of root attribute `name`, its type and size verified; it has no checksum."""
        if not self.has_document(name):
            raise CacheCorruptError(f"{str(self.path)!r}: attribute {name!r} is missing")
        return str(read_scalar(self._root, name, str(self.path), text=True).decode(errors="replace"))

    def json(self, name: str) -> Any:
        """The parsed text of root attribute `name`."""
        return parse_json(self.document(name), f"{str(self.path)!r}: attribute {name!r}")

    def expect_members(self, group: str, names: Collection[str]) -> None:
        """Refuses the file unless `group` ("" for the root) has exactly these members."""
        count = self._group(group).get_num_objs()
        if count != len(names):
            raise CacheCorruptError(
                f"{str(self.path)!r}: group '/{group}' has {count} members, expected {len(names)}"
                f" ({', '.join(sorted(names)[:4])}{' ...' if len(names) > 4 else ''})"
            )
        for name in names:
            self._check_hard_link(group, name)

    def map(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        """A read-only view of dataset `name`, which must have exactly this dtype and shape; not read yet."""
        found, found_shape, offset = self._locate(name)
        if found != np.dtype(dtype) or found_shape != shape:
            raise CacheCorruptError(
                f"{str(self.path)!r}: dataset {name!r} is {found} {list(found_shape)}, expected {dtype} {list(shape)}"
            )
        return self._view(name, found, shape, offset)

    def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        """Dataset `name`, read and compared with its checksum."""
        return self._verified(name, self.map(name, dtype, shape))

    def flat(self, name: str, dtype: str) -> Array:
        """Dataset `name` of one dimension and any length, read and compared with its checksum."""
        return self._verified(name, self.map_flat(name, dtype))

    def map_flat(self, name: str, dtype: str) -> Array:
        """A read-only view of dataset `name` of one dimension and any length; not read yet."""
        _, shape, _ = self._locate(name)
        return self.map(name, dtype, shape[:1])

    def read_array(self, name: str) -> Array:
        """Dataset `name` of any shape and plain numeric dtype, read and compared with its checksum."""
        dtype, shape, offset = self._locate(name)
        if dtype.str not in _LEARNT_DTYPES or len(shape) > 4:
            raise CacheCorruptError(f"{str(self.path)!r}: dataset {name!r} is {dtype} {list(shape)}, not plain numbers")
        return self._verified(name, self._view(name, dtype, shape, offset))

    def checksums(self) -> dict[str, int]:
        """Array -> CRC-32 of its bytes, as the file states them."""
        if self._sums is None:
            self._sums = parse_sums(self.json(ARRAYS_ATTRIBUTE), repr(str(self.path)))
        return self._sums

    def check_no_overlap(self) -> None:
        """Refuses the file if two of the requested datasets share bytes."""
        ordered = sorted(set(self._taken))
        for (_, stop, name), (start, _, other) in itertools.pairwise(ordered):
            if start < stop:
                raise CacheCorruptError(f"{str(self.path)!r}: datasets {name!r} and {other!r} overlap")

    def _check_hard_link(self, group: str, name: str) -> None:
        place = f"{group}/{name}" if group else name
        check_component(name, repr(str(self.path)))  # HDF5 would walk along a path, and through a link in it
        parent = self._group(group)
        if name.encode() not in parent or parent.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise CacheCorruptError(f"{str(self.path)!r} has no dataset or group {place!r} of its own")

    def _member(self, place: str, kind: int) -> Any:
        """The object at `place`, of HDF5's object type `kind`, each step to it a hard link."""
        group, _, name = place.rpartition("/")
        self._check_hard_link(group, name)
        member = h5py.h5o.open(self._group(group), name.encode())
        if h5py.h5o.get_info(member).type != kind:
            raise CacheCorruptError(f"{str(self.path)!r}: {place!r} is another kind of object than expected")
        return member

    def _group(self, place: str) -> Any:
        if place not in self._groups:
            self._groups[place] = self._member(place, h5py.h5o.TYPE_GROUP)
        return self._groups[place]

    def _locate(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...], int]:
        """Returns (dtype, shape, offset) of dataset `name`, whose bytes are all inside the file; reads none of them."""
        dataset = self._member(name, h5py.h5o.TYPE_DATASET)
        return inspect_dataset(dataset, name, str(self.path), self.num_bytes)

    def _view(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> Array:
        view: Array = np.ndarray(shape, dtype, buffer=self.mapping, offset=offset)
        if view.nbytes:
            self._taken.append((offset, offset + view.nbytes, name))
        return view

    def _verified(self, name: str, values: Array) -> Array:
        if name not in self.checksums() or zlib.crc32(values.reshape(-1).view("u1").data) != self.checksums()[name]:
            raise CacheCorruptError(
                f"{str(self.path)!r}: dataset {name!r} does not match its checksum: restore the file, or build it again"
            )
        return np.array(values)
