"""The rows of one shard, or of one view of a packed file: found, checked, mapped."""

from __future__ import annotations

from kdkit.cache.format.arrays import side_arrays
from kdkit.cache.format.constants import checksum_name, payload_name
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.cache.hdf5.read import CheckedHDF5File
from kdkit.cache.payload import Segment


def open_segments(
    file: CheckedHDF5File, metadata: CacheMetadata, shard: Shard, file_crc32: int | None = None
) -> dict[str, Segment]:
    """Stream -> its rows of `shard`, from an open file that has these members of the view and no others.

    Args:
        file: the open file.
        metadata: that of its cache.
        shard: the shard that the file, or its view, is.
        file_crc32: CRC-32 of the whole file, to compare at first touch; None where something else ties it to its cache.

    Raises:
        CacheCorruptError: a member is missing, unexpected, or not of its exact dtype and shape.
    """
    group, small = f"views/{shard.view:04d}", side_arrays(metadata, shard)
    file.expect_members(group, [*metadata.streams, *(name.rpartition("/")[2] for name in small)])
    for name, described in small.items():
        file.map(name, *described)
    segments = {}
    for stream in metadata.streams:
        rows = file.map(payload_name(shard.view, stream), "u1", (shard.num_rows, metadata.row_bytes(stream)))
        sums_name = checksum_name(shard.view, stream)
        checksums = file.array(sums_name, *small[sums_name])
        segments[stream] = Segment(
            str(file.path), shard.start, rows, checksums, file.mapping, file.num_bytes, file_crc32
        )
    return segments
