"""How large a packed cache will be, to within the digits of its checksums: its layout is made in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from kdkit.cache.format import (
    ARRAYS_ATTRIBUTE,
    BLOCK_ROWS,
    BUILD_ATTRIBUTE,
    checksum_name,
    hashed_rows,
    payload_name,
    pixel_name,
)
from kdkit.cache.hdf5 import Array
from kdkit.cache.identity import write_metadata
from kdkit.cache.layout import lay_out, write_document, write_text
from kdkit.cache.metadata import CacheMetadata

_A_CHECKSUM = 0xFFFFFFFF
_A_BUILD_RECORD = " " * 64


def packed_num_bytes(metadata: CacheMetadata, index_arrays: Mapping[str, Array]) -> int:
    """Bytes of the packed file of a cache with this metadata and these index arrays (keys, what codecs learnt)."""
    rows, view_arrays, payloads = metadata.num_rows, {}, {}
    for view in range(metadata.num_views):
        view_arrays[pixel_name(view)] = ((len(hashed_rows(0, rows)),), np.dtype("<u4"))
        for stream in metadata.streams:
            view_arrays[checksum_name(view, stream)] = ((-(-rows // BLOCK_ROWS),), np.dtype("<u4"))
            payloads[payload_name(view, stream)] = ((rows, metadata.row_bytes(stream)), np.dtype("u1"))
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        **{name: (array.shape, array.dtype) for name, array in index_arrays.items()},
        **view_arrays,
    }

    def set_attributes(file: h5py.File) -> None:
        write_metadata(file, metadata)
        write_text(file, BUILD_ATTRIBUTE, _A_BUILD_RECORD)
        sums = dict.fromkeys(arrays, _A_CHECKSUM)
        write_document(file, ARRAYS_ATTRIBUTE, json.dumps(sums, sort_keys=True, separators=(",", ":")))

    return lay_out({**arrays, **payloads}, set_attributes).num_bytes
