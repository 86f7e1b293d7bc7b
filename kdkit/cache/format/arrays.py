"""The side arrays of a shard: small arrays next to its payloads. A view of a packed file is a shard of all rows.

One list serves writing, packing, sizing and opening.
"""

from __future__ import annotations

from collections.abc import Mapping

from kdkit.cache.format.constants import (
    BLOCK_ROWS,
    checksum_name,
    fidelity_columns,
    fidelity_name,
    num_hashed_rows,
    pixel_name,
)
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.cache.hdf5.read import CheckedHDF5File
from kdkit.cache.types import Array
from kdkit.errors import CacheError


def side_arrays(metadata: CacheMetadata, shard: Shard) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dataset -> its (dtype, shape)."""
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {
        pixel_name(shard.view): ("<u4", (num_hashed_rows(shard.start, shard.stop),))
    }
    for stream in metadata.streams:
        arrays[checksum_name(shard.view, stream)] = ("<u4", (-(-shard.num_rows // BLOCK_ROWS),))
        if metadata.measures_views(stream):
            measured = metadata.measured_rows(stream, shard.start, shard.stop)
            arrays[fidelity_name(shard.view, stream)] = ("<f4", (len(measured), fidelity_columns(stream)))
    return arrays


def read_side_arrays(file: CheckedHDF5File, metadata: CacheMetadata, shard: Shard) -> dict[str, Array]:
    """Dataset -> its values, each compared with its checksum."""
    return {name: file.array(name, *described) for name, described in side_arrays(metadata, shard).items()}


def check_side_arrays(arrays: Mapping[str, Array], metadata: CacheMetadata, shard: Shard) -> None:
    """Raises CacheError unless these are the side arrays that a reader will expect of the shard."""
    expected = side_arrays(metadata, shard)
    found = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            raise CacheError(f"{shard}: got {name!r} {found.get(name, 'not')}, expected {expected.get(name, 'none')}")
