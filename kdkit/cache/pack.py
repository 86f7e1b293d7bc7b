"""Packing: from sealed shards to one file, verified, renamed into place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kdkit.cache import durable
from kdkit.cache.format import (
    BUILD_ATTRIBUTE,
    CacheMetadata,
    Shard,
    checksum_name,
    payload_name,
    pixel_name,
    write_metadata,
)
from kdkit.cache.hdf5 import Array, Region, map_dataset, write_hdf5
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
        file.attrs[BUILD_ATTRIBUTE] = build

    with durable.replacing(path) as temporary:
        write_hdf5(
            temporary,
            set_attributes=set_attributes,
            arrays={**_index_arrays(parts), **_small_arrays(parts)},
            regions=_payload_regions(parts),
        )
        CachedTeacher(temporary).verify()
    shutil.rmtree(parts.folder)


def _index_arrays(parts: Parts) -> dict[str, Array]:
    """Every dataset of the index file."""
    arrays: dict[str, Array] = {}

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(parts.index, "r", locking=False) as file:
        file.visititems(collect)
    return arrays


def _small_arrays(parts: Parts) -> dict[str, Array]:
    """Checksums and pixel hashes of each view, joined over its shards."""
    pieces: dict[str, list[Array]] = {}
    for shard in parts.metadata.shards():
        names = [pixel_name(shard.view), *(checksum_name(shard.view, stream) for stream in parts.metadata.streams)]
        with h5py.File(parts.shard_path(shard), "r", locking=False) as file:
            for name in names:
                pieces.setdefault(name, []).append(file[name][()])
    return {name: np.concatenate(arrays) for name, arrays in pieces.items()}


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
    for shard in parts.metadata.shards():
        if shard.view == view:
            yield _payload(parts, shard, stream)


def _payload(parts: Parts, shard: Shard, stream: str) -> Array:
    path = parts.shard_path(shard)
    with h5py.File(path, "r", locking=False) as file:
        shape = (shard.num_rows, parts.metadata.row_bytes(stream))
        return map_dataset(file, payload_name(shard.view, stream), path, "u1", shape)
