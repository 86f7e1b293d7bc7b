"""Pack sealed shards into one file, verified and renamed into place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from kdkit.cache.file import CacheFile
from kdkit.cache.format.arrays import read_side_arrays, side_arrays
from kdkit.cache.format.constants import BUILD_ATTRIBUTE, payload_name
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.cache.hdf5.documents import write_metadata
from kdkit.cache.hdf5.layout import write_text
from kdkit.cache.hdf5.open import open_hdf5
from kdkit.cache.hdf5.write import Region, write_hdf5
from kdkit.cache.opening import open_index, open_packed
from kdkit.cache.shards.folder import ShardFolder
from kdkit.cache.types import Array
from kdkit.cache.write_errors import cache_write_errors
from kdkit.errors import CacheIncompleteError
from kdkit.runtime import files


@cache_write_errors()
def pack(parts: ShardFolder, path: Path, build: str = "{}", packed_views: int = 0) -> None:
    """Writes all shards of `parts` as one file at `path`, and removes the parts folder.

    Every shard is first verified against its manifest entry, and the packed file against its checksums before it is
    renamed into place.

    Args:
        parts: a complete parts folder.
        path: path of the packed file.
        build: JSON text of the build's time and cost.
        packed_views: the number of views that a packed file at `path` already holds; `parts` has the shards of the
            others.

    Raises:
        CacheIncompleteError: a shard is missing.
        CacheCorruptError: a shard or a packed view has changed since it was sealed.
    """
    if missing := parts.missing(packed_views):
        raise CacheIncompleteError(f"{str(parts.folder)!r} cannot be packed: {len(missing)} shards are missing")
    check_no_further_views(parts)
    parts.verify_all(packed_views)
    if packed_views:
        CacheFile(path).verify()

    def set_attributes(file: h5py.File) -> None:
        write_metadata(file, parts.metadata)
        write_text(file, BUILD_ATTRIBUTE, build)

    with files.atomic_write(path) as temporary:
        write_hdf5(
            temporary,
            set_attributes=set_attributes,
            arrays={
                **index_arrays(parts),
                **_packed_arrays(path, parts.metadata, packed_views),
                **_joined_arrays(parts, packed_views),
            },
            regions=_payload_regions(parts, path, packed_views),
        )
        CacheFile(temporary).verify()
    files.remove_folder(parts.folder)


def index_arrays(parts: ShardFolder) -> dict[str, Array]:
    """Every dataset of the index file."""
    open_index(parts)
    with open_hdf5(parts.index) as file:
        return {name: file.read_array(name) for name in file.checksums()}


def check_no_further_views(parts: ShardFolder) -> None:
    """Checks that no shards of an unfinished extension would be removed with the folder.

    Raises:
        CacheIncompleteError: there are some.
    """
    views = parts.metadata.num_views
    further = [file for file in parts.folder.glob("v[0-9][0-9][0-9][0-9]-*.json") if int(file.name[1:5]) >= views]
    if further:
        raise CacheIncompleteError(
            f"{str(parts.folder)!r} cannot be packed: it holds {len(further)} shards of views beyond its {views}, left "
            "by an extension: finish that with `kdkit cache extend`, or delete them"
        )


def _packed_arrays(path: Path, metadata: CacheMetadata, packed_views: int) -> dict[str, Array]:
    """The small arrays of the views that the packed file at `path` holds."""
    arrays: dict[str, Array] = {}
    if packed_views:
        with open_hdf5(path) as file:
            for view in range(packed_views):
                arrays |= read_side_arrays(file, metadata, Shard(view, 0, metadata.num_rows))
    return arrays


def _joined_arrays(parts: ShardFolder, first_view: int) -> dict[str, Array]:
    """The small arrays of each view from `first_view` on, joined over its shards."""
    metadata = parts.metadata
    arrays: dict[str, Array] = {}
    for view in range(first_view, metadata.num_views):
        none = {
            name: np.empty(shape, dtype) for name, (dtype, shape) in side_arrays(metadata, Shard(view, 0, 0)).items()
        }
        pieces = [none]
        for shard in metadata.shards_of(view):
            with open_hdf5(parts.shard_path(shard)) as file:
                pieces.append(read_side_arrays(file, metadata, shard))
        arrays |= {name: np.concatenate([piece[name] for piece in pieces]) for name in none}
    return arrays


def _payload_regions(parts: ShardFolder, path: Path, packed_views: int) -> Mapping[str, Region]:
    metadata = parts.metadata
    packed = open_packed(path, verify=False)[2] if packed_views else {}
    return {
        payload_name(view, stream): Region(
            (metadata.num_rows, metadata.row_bytes(stream)),
            np.dtype("u1"),
            [segment.rows for segment in packed[view, stream].segments]
            if view < packed_views
            else _shard_chunks(parts, metadata.shards_of(view), stream),
        )
        for view in range(metadata.num_views)
        for stream in metadata.streams
    }


def _shard_chunks(parts: ShardFolder, shards: Iterator[Shard], stream: str) -> Iterator[Array]:
    """The rows of one stream of one view, shard by shard."""
    for shard in shards:
        yield parts.open_shard(shard)[stream].rows
