"""The small arrays of a cache that are read on request: sample keys, pixel hashes, fidelity by view.

A path is that of a packed file or of a parts folder, finished or not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from kdkit.cache.format.arrays import side_arrays
from kdkit.cache.format.constants import (
    ABSENT_NAME,
    BUILD_ATTRIBUTE,
    CONTENT_NAME,
    DIGEST_BYTES,
    DIGEST_NAME,
    KEYS_NAME,
    checksum_name,
    fidelity_name,
    hashed_rows,
    pixel_name,
)
from kdkit.cache.format.content import CONTENT_BYTES
from kdkit.cache.format.json import parse_json
from kdkit.cache.format.keys import MAX_ABSENT_BYTES, unpack_keys
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.cache.hdf5.open import open_hdf5
from kdkit.cache.shards.folder import INDEX_NAME, ShardFolder, shard_folder
from kdkit.cache.shards.packed import follow_packing
from kdkit.cache.types import Array
from kdkit.errors import CacheError

BEGUN = "begun"
"""In the build's record: when its index was written."""


@follow_packing
def stored_keys(path: Path, num_rows: int) -> list[str]:
    """The sample keys in row order."""
    index = _index_of(path)
    with open_hdf5(index) as file:
        return unpack_keys(file.flat(KEYS_NAME, "u1"), num_rows, repr(str(index)))


@follow_packing
def stored_absent(path: Path, metadata: CacheMetadata) -> list[str]:
    """Keys of the samples that the build left out."""
    if not metadata.num_absent:
        return []
    index = _index_of(path)
    with open_hdf5(index) as file:
        return unpack_keys(file.flat(ABSENT_NAME, "u1"), metadata.num_absent, repr(str(index)), MAX_ABSENT_BYTES)


@follow_packing
def stored_content(path: Path, metadata: CacheMetadata) -> Array:
    """The content records, uint8 [R, 28]; [0, 28] if the cache has none."""
    if metadata.content_kind is None:
        return np.zeros((0, CONTENT_BYTES), dtype=np.uint8)
    with open_hdf5(_index_of(path)) as file:
        return file.array(CONTENT_NAME, "u1", (metadata.num_rows, CONTENT_BYTES))


def begun_at(path: Path) -> float | None:
    """When the cache at `path` was begun, finished or not, seconds since 1970; None if that is not known.

    It is only a hint, so it is not under a checksum: see kdkit.cache.content.
    """
    try:
        if path.is_file():
            with open_hdf5(path) as file:
                found = parse_json(file.text(BUILD_ATTRIBUTE), "build").get(BEGUN)
            return float(found) if isinstance(found, (int, float)) else None
        return ((path if path.is_dir() else shard_folder(path)) / INDEX_NAME).stat().st_mtime
    except (CacheError, OSError, AttributeError):
        return None


@follow_packing
def stored_digests(path: Path, num_rows: int) -> Array:
    """The digests of the sample keys in row order, uint8 [R, 16]."""
    with open_hdf5(_index_of(path)) as file:
        return file.array(DIGEST_NAME, "u1", (num_rows, DIGEST_BYTES))


@follow_packing
def stored_index_arrays(path: Path, prefix: str) -> dict[str, Array]:
    """The index datasets whose full names begin with `prefix`, such as "codecs/"."""
    with open_hdf5(_index_of(path)) as file:
        return {name: file.read_array(name) for name in file.checksums() if name.startswith(prefix)}


@follow_packing
def stored_pixels(path: Path, metadata: CacheMetadata, view: int) -> dict[int, int]:
    """Row -> CRC-32 of its pixels, for the hashed rows of a view of a finished cache; none if it has no pixels."""
    if not metadata.has_pixels:
        return {}
    if not path.is_dir():
        return shard_pixels(path, Shard(view, 0, metadata.num_rows))
    parts = ShardFolder(path, metadata)
    hashes: dict[int, int] = {}
    for shard in metadata.shards_of(view):
        hashes |= shard_pixels(parts.shard_path(shard), shard)
    return hashes


def shard_pixels(path: Path, shard: Shard) -> dict[int, int]:
    """Row -> CRC-32 of its pixels, for the hashed rows of the shard in the file at `path`; a packed file is one."""
    rows = hashed_rows(shard.start, shard.stop)
    with open_hdf5(path) as file:
        return dict(zip(rows, file.array(pixel_name(shard.view), "<u4", (len(rows),)).tolist(), strict=True))


@follow_packing
def stored_fidelity(path: Path, metadata: CacheMetadata) -> dict[str, list[Array]]:
    """Stream -> for each view the fidelity of the measured rows, float32 [rows, measures], of a finished cache.

    Streams that were not measured in every view are left out.
    """
    measured = [stream for stream in metadata.streams if metadata.measures_views(stream)] if metadata.num_rows else []
    pieces: dict[str, list[list[Array]]] = {stream: [[] for _ in range(metadata.num_views)] for stream in measured}
    for place, shards in _places(path, metadata) if measured else ():
        with open_hdf5(place) as file:
            for shard in shards:
                for stream in measured:
                    name = fidelity_name(shard.view, stream)
                    pieces[stream][shard.view].append(file.array(name, *side_arrays(metadata, shard)[name]))
    return {stream: [np.concatenate(view) for view in views] for stream, views in pieces.items()}


@follow_packing
def rows_sha256(path: Path, metadata: CacheMetadata) -> str:
    """SHA-256 of the checksums of all rows of a finished cache: of its rows, without reading them."""
    found = hashlib.sha256()
    for place, shards in _places(path, metadata):
        with open_hdf5(place) as file:
            sums = file.checksums()
            names = [checksum_name(shard.view, stream) for shard in shards for stream in metadata.streams]
            found.update(str([(name, sums.get(name)) for name in names]).encode())
    return found.hexdigest()


def _places(path: Path, metadata: CacheMetadata) -> list[tuple[Path, list[Shard]]]:
    """Each file with rows, and the shards that it holds."""
    if not path.is_dir():
        return [(path, [Shard(view, 0, metadata.num_rows) for view in range(metadata.num_views)])]
    parts = ShardFolder(path, metadata)
    return [(parts.shard_path(shard), [shard]) for shard in metadata.shards()]


def _index_of(path: Path) -> Path:
    return ShardFolder.open(path).index if path.is_dir() else path
