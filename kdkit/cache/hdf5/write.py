"""Writing a cache file: HDF5's layout and the datasets' bytes, through plain writes only."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kdkit.cache.format.constants import ARRAYS_ATTRIBUTE
from kdkit.cache.hdf5.layout import lay_out, write_document
from kdkit.cache.types import Array
from kdkit.runtime import files


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
    """Writes a new file at `path` and fsyncs it: attributes, whole arrays with their CRC-32, and streamed regions."""

    def set_all_attributes(file: h5py.File) -> None:
        set_attributes(file)
        sums = {name: zlib.crc32(_bytes_of(array)) for name, array in arrays.items()}
        write_document(file, ARRAYS_ATTRIBUTE, json.dumps(sums, sort_keys=True, separators=(",", ":")))

    whole = {name: Region(array.shape, array.dtype, [array]) for name, array in arrays.items()}
    datasets = {**whole, **regions}
    layout = lay_out({name: (region.shape, region.dtype) for name, region in datasets.items()}, set_all_attributes)
    with files.new_file(path, layout.num_bytes) as descriptor:
        for offset, piece in layout.pieces:
            files.write_at(descriptor, piece, offset)
        for name, region in datasets.items():
            offset = layout.offsets[name]
            for chunk in region.chunks:
                offset += files.write_at(descriptor, _bytes_of(chunk), offset)


def _bytes_of(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view("u1").data
