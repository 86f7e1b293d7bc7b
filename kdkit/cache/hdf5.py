"""The two HDF5 operations of a cache: lay out a file, and map its datasets.

HDF5 only ever sees the layout, for milliseconds. Payload goes to the datasets' offsets through plain writes, and is
read through a plain memory map: contiguous datasets without filters are bytes in a row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kdkit.cache.durable import reserve
from kdkit.errors import CacheCorruptError

Array = np.ndarray[Any, Any]
_LAYOUT_BYTES = 1 << 20  # generous room for headers when space is reserved


@dataclass(frozen=True)
class Region:
    """A dataset whose bytes are streamed in: shape, dtype, and the chunks [rows, ...] that fill it in order."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: Iterable[Array]


def write_hdf5(
    path: Path,
    *,
    set_attributes: Callable[[h5py.File], None],
    arrays: Mapping[str, Array],
    regions: Mapping[str, Region],
) -> None:
    """Writes a new file at `path`: attributes and small arrays through HDF5, regions through plain writes."""
    num_bytes = sum(array.nbytes for array in arrays.values())
    num_bytes += sum(int(np.prod(region.shape)) * region.dtype.itemsize for region in regions.values())
    reserve(path, num_bytes + _LAYOUT_BYTES)
    with h5py.File(path, "x", libver="v110") as file:
        set_attributes(file)
        for name, array in arrays.items():
            file.create_dataset(name, data=array, track_times=False)
        offsets = {name: _allocate(file, name, region) for name, region in regions.items()}
    with open(path, "r+b") as raw:
        for name, region in regions.items():
            raw.seek(offsets[name])
            for chunk in region.chunks:
                raw.write(np.ascontiguousarray(chunk).data.cast("B"))
        raw.flush()
        os.fsync(raw.fileno())


def map_dataset(file: h5py.File, name: str, path: Path, dtype: str, shape: tuple[int, ...]) -> Array:
    """A read-only memory map of dataset `name`, which must have exactly this dtype and shape.

    Raises:
        CacheCorruptError: it is missing, another kind of object, or does not lie whole inside the file.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file.get(name), h5py.Dataset):
        raise CacheCorruptError(f"{path} has no dataset {name!r}")
    dataset = file[name]
    if dataset.dtype != np.dtype(dtype) or dataset.shape != shape:
        raise CacheCorruptError(
            f"{path}: dataset {name!r} is {dataset.dtype} {list(dataset.shape)}, expected {dtype} {list(shape)}"
        )
    if dataset.size == 0:
        return np.empty(shape, dtype)
    offset = dataset.id.get_offset()
    if dataset.chunks is not None or dataset.external or dataset.is_virtual or offset is None:
        raise CacheCorruptError(f"{path}: dataset {name!r} is not contiguous inside the file")
    if offset + dataset.nbytes > path.stat().st_size:
        raise CacheCorruptError(f"{path} is cut short: dataset {name!r} ends beyond the end of the file")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape).view(np.ndarray)


def _allocate(file: h5py.File, name: str, region: Region) -> int:
    """Makes an unwritten contiguous dataset and returns its offset in the file."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(region.shape)
    dataset = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(region.dtype), space, plist, links)
    offset = dataset.get_offset()
    return 0 if offset is None else int(offset)
