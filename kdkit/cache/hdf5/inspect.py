"""Place and type of a dataset or an attribute: only the kinds that a cache has pass these two checks."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from kdkit.cache.format.constants import MAX_DOCUMENT_BYTES
from kdkit.errors import CacheCorruptError


def inspect_dataset(dataset: Any, name: str, origin: str, num_bytes: int) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Returns (dtype, shape, offset) of an open dataset whose bytes are all inside the file; reads none of them.

    Args:
        dataset: h5py's low-level object.
        name: name of the dataset, for errors.
        origin: the file's path, for errors.
        num_bytes: the file's size.

    Raises:
        CacheCorruptError: it is not plain numbers, contiguous and whole inside the file.
    """
    plist, kind = dataset.get_create_plist(), dataset.get_type()
    if (
        plist.get_layout() != h5py.h5d.CONTIGUOUS
        or plist.get_nfilters()
        or plist.get_external_count()
        or kind.committed()
        or not isinstance(kind, (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID))
    ):
        raise CacheCorruptError(f"{origin!r}: dataset {name!r} is not plain numbers, contiguous in this file")
    dtype, space = kind.dtype, dataset.get_space()
    shape = tuple(int(side) for side in space.shape) if space.get_simple_extent_type() == h5py.h5s.SIMPLE else (-1,)
    size = dtype.itemsize
    for side in shape:
        size *= side
    offset = dataset.get_offset() if size else 0
    if size < 0 or offset is None or offset + size > num_bytes:
        raise CacheCorruptError(
            f"{origin!r} is cut short: dataset {name!r}, {dtype} {list(shape)}, ends beyond the file's end"
        )
    return dtype, shape, int(offset)


def read_scalar(root: Any, name: str, origin: str, *, text: bool) -> Any:
    """Reads a fixed-length text or uint32 attribute of the root, after checking its type and size.

    Args:
        root: h5py's low-level group.
        name: name of the attribute.
        origin: the file's path, for errors.
        text: whether the attribute must be a text; otherwise it must be a uint32.

    Raises:
        CacheCorruptError: it is something else, or too large.
    """
    attribute = h5py.h5a.open(root, name.encode())
    kind, space = attribute.get_type(), attribute.get_space()
    if text:
        plain = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
    else:
        plain = isinstance(kind, h5py.h5t.TypeIntegerID) and kind.dtype == np.dtype("<u4")
    if not plain or kind.committed() or space.get_simple_extent_type() != h5py.h5s.SCALAR:
        expected = "a text of fixed length" if text else "an unsigned 32-bit integer"
        raise CacheCorruptError(f"{origin!r}: attribute {name!r} is not {expected}")
    if kind.get_size() > MAX_DOCUMENT_BYTES:
        raise CacheCorruptError(f"{origin!r}: attribute {name!r} has {kind.get_size()} bytes, too many")
    value = np.empty((), dtype=f"S{kind.get_size()}" if text else "<u4")
    attribute.read(value, mtype=kind)
    return value[()]
