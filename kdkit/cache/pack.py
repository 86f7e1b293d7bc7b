"""Packing: from sealed shards to one file, verified, renamed into place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from kdkit.cache import durable
from kdkit.cache.door import open_hdf5
from kdkit.cache.format import (
    BUILD_ATTRIBUTE,
    CacheMetadata,
    checksum_name,
    payload_name,
    pixel_name,
)
from kdkit.cache.hdf5 import Array, Region, write_hdf5
from kdkit.cache.identity import write_metadata
from kdkit.cache.layout import write_text
from kdkit.cache.opening import open_index
from kdkit.cache.parts import Parts
from kdkit.cache.reader import CachedTeacher
from kdkit.errors import CacheIncompleteError


def pack(parts: Parts, path: Path, build: str = "{}") -> None:
    """Writes all shards of `parts` as one file at `path`, and removes the parts folder.

    Every shard is compared with its manifest entry before, and the packed file with its checksums before it is renamed
    into place.

    Args:
        parts: a complete parts folder.
        path: where the packed file will stand.
        build: JSON text of the build's time and cost.

    Raises:
        CacheIncompleteError: a shard is missing.
        CacheCorruptError: a shard is not what was sealed.
    """
    if missing := parts.missing():
        raise CacheIncompleteError(f"{str(parts.folder)!r} cannot be packed: {len(missing)} shards are missing")
    for shard in parts.metadata.shards():
        parts.verify(shard)

    def set_attributes(file: h5py.File) -> None:
        write_metadata(file, parts.metadata)
        write_text(file, BUILD_ATTRIBUTE, build)

    with durable.replacing(path) as temporary:
        write_hdf5(
            temporary,
            set_attributes=set_attributes,
            arrays={**_index_arrays(parts), **_small_arrays(parts)},
            regions=_payload_regions(parts),
        )
        CachedTeacher(temporary).verify()
    durable.remove_folder(parts.folder)


def _index_arrays(parts: Parts) -> dict[str, Array]:
    """Every dataset of the index file."""
    open_index(parts)
    with open_hdf5(parts.index) as file:
        return {name: file.learnt(name) for name in file.sums()}


def _small_arrays(parts: Parts) -> dict[str, Array]:
    """Checksums and pixel hashes of each view, joined over its shards."""
    metadata, nothing = parts.metadata, np.empty(0, dtype="<u4")
    arrays: dict[str, Array] = {}
    for view in range(metadata.num_views):
        names = [pixel_name(view), *(checksum_name(view, stream) for stream in metadata.streams)]
        pieces: dict[str, list[Array]] = {name: [nothing] for name in names}
        for shard in metadata.shards_of(view):
            with open_hdf5(parts.shard_path(shard)) as file:
                for name in names:
                    pieces[name].append(file.flat(name, "<u4"))
        arrays |= {name: np.concatenate(found) for name, found in pieces.items()}
    return arrays


def _payload_regions(parts: Parts) -> Mapping[str, Region]:
    metadata: CacheMetadata = parts.metadata
    return {
        payload_name(view, stream): Region(
            (metadata.num_rows, metadata.row_bytes(stream)), np.dtype("u1"), _payload_chunks(parts, view, stream)
        )
        for view in range(metadata.num_views)
        for stream in metadata.streams
    }


def _payload_chunks(parts: Parts, view: int, stream: str) -> Iterator[Array]:
    """The rows of one stream of one view, shard by shard."""
    for shard in parts.metadata.shards_of(view):
        yield parts.open_shard(shard)[stream].rows
