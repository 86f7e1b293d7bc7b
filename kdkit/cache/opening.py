"""Opening a cache, packed or in parts: nothing in the file is trusted before it was checked."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from kdkit.cache.codecs import Codec, create_codec
from kdkit.cache.format import (
    BLOCK_ROWS,
    CacheMetadata,
    check_shard_identity,
    checksum_name,
    codec_array_name,
    payload_name,
    read_metadata,
)
from kdkit.cache.hdf5 import map_dataset
from kdkit.cache.parts import Parts, parts_folder
from kdkit.cache.payload import Payload, Segment
from kdkit.errors import CacheCorruptError, CacheIncompleteError, CacheNotFoundError

Opened = tuple[CacheMetadata, dict[str, Codec], dict[tuple[int, str], Payload]]


def locate(path: Path) -> Path:
    """The packed file or parts folder that `path` means."""
    if path.is_file() or path.is_dir():
        return path
    if parts_folder(path).is_dir():
        return parts_folder(path)
    raise CacheNotFoundError(f"there is no cache at {str(path)!r}: build one with `kdkit cache build`")


def open_index(parts: Parts) -> dict[str, Codec]:
    """Stream name -> its codec, fitted as the index of a parts folder says."""
    with open_hdf5(parts.index) as file:
        return _codecs(file, parts.index, parts.metadata)


def open_packed(path: Path, verify: bool) -> Opened:
    """Metadata, codecs and payloads of a packed file."""
    with open_hdf5(path) as file:
        metadata = read_metadata(file, repr(str(path)))
        payloads = {
            (view, stream): Payload(
                view, stream, [_segment(file, path, metadata, view, stream, 0, metadata.num_rows)], verify=verify
            )
            for view in range(metadata.num_views)
            for stream in metadata.streams
        }
        return metadata, _codecs(file, path, metadata), payloads


def open_parts(folder: Path, verify: bool) -> Opened:
    """Metadata, codecs and payloads of a complete parts folder."""
    parts = Parts.open(folder)
    metadata = parts.metadata
    if missing := parts.missing():
        total = sum(1 for _ in metadata.shards())
        raise CacheIncompleteError(
            f"the cache in {str(folder)!r} is not finished: {len(missing)} of {total} shards are missing, the first is "
            f"{missing[0]}; run its build again to resume it"
        )
    segments: dict[tuple[int, str], list[Segment]] = {}
    for shard in metadata.shards():
        path = parts.shard_path(shard)
        with open_hdf5(path) as file:
            check_shard_identity(file, metadata, shard, repr(str(path)))
            for stream in metadata.streams:
                segment = _segment(file, path, metadata, shard.view, stream, shard.start, shard.stop)
                segments.setdefault((shard.view, stream), []).append(segment)
    payloads = {key: Payload(*key, value, verify=verify) for key, value in segments.items()}
    return metadata, open_index(parts), payloads


def _segment(
    file: h5py.File, path: Path, metadata: CacheMetadata, view: int, stream: str, start: int, stop: int
) -> Segment:
    blocks = -(-(stop - start) // BLOCK_ROWS)
    return Segment(
        str(path),
        start,
        map_dataset(file, payload_name(view, stream), path, "u1", (stop - start, metadata.row_bytes(stream))),
        map_dataset(file, checksum_name(view, stream), path, "<u4", (blocks,)),
    )


def _codecs(file: h5py.File, path: Path, metadata: CacheMetadata) -> dict[str, Codec]:
    codecs = {}
    for stream, description in metadata.streams.items():
        codec = create_codec(**description["codec"])
        if codec.row_bytes != metadata.row_bytes(stream):
            raise CacheCorruptError(f"{str(path)!r}: stream {stream!r} does not have the row size of its codec")
        arrays = file.get(codec_array_name(stream, "")[:-1])
        learnt = {} if arrays is None else {name: np.asarray(values) for name, values in arrays.items()}
        codecs[stream] = codec.with_arrays(learnt)
    return codecs


def open_hdf5(path: Path) -> h5py.File:
    """The file, read-only and without locking; CacheCorruptError where HDF5 cannot read it."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise CacheCorruptError(f"{str(path)!r} cannot be read as HDF5: {error}") from error
