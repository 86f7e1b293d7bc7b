"""The size of a packed cache before it is written, to within the digits of its checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from kdkit.cache.format.arrays import side_arrays
from kdkit.cache.format.constants import ARRAYS_ATTRIBUTE, BUILD_ATTRIBUTE, payload_name
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.cache.hdf5.documents import write_metadata
from kdkit.cache.hdf5.layout import lay_out, write_document, write_text
from kdkit.cache.types import Array

_A_CHECKSUM = 0xFFFFFFFF
_A_BUILD_RECORD = " " * 64


def packed_num_bytes(metadata: CacheMetadata, index_arrays: Mapping[str, Array]) -> int:
    """Bytes of the packed file of a cache with this metadata and these index arrays (keys, fitted codecs)."""
    rows, payloads = metadata.num_rows, {}
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        name: (array.shape, array.dtype) for name, array in index_arrays.items()
    }
    for view in range(metadata.num_views):
        for name, (dtype, shape) in side_arrays(metadata, Shard(view, 0, rows)).items():
            arrays[name] = (shape, np.dtype(dtype))
        for stream in metadata.streams:
            payloads[payload_name(view, stream)] = ((rows, metadata.row_bytes(stream)), np.dtype("u1"))

    def set_attributes(file: h5py.File) -> None:
        write_metadata(file, metadata)
        write_text(file, BUILD_ATTRIBUTE, _A_BUILD_RECORD)
        sums = dict.fromkeys(arrays, _A_CHECKSUM)
        write_document(file, ARRAYS_ATTRIBUTE, json.dumps(sums, sort_keys=True, separators=(",", ":")))

    return lay_out({**arrays, **payloads}, set_attributes).num_bytes
