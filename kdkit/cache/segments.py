"""The rows of one shard, or of one view of a packed file: found, checked, mapped."""

from __future__ import annotations

from kdkit.cache.format import BLOCK_ROWS, checksum_name, num_hashed_rows, payload_name, pixel_name
from kdkit.cache.metadata import CacheMetadata, Shard
from kdkit.cache.payload import Segment
from kdkit.cache.strict import StrictFile


def open_segments(file: StrictFile, metadata: CacheMetadata, shard: Shard) -> dict[str, Segment]:
    """Stream -> its rows of `shard`, from an open file that has these members of the view and no others.

    Raises:
        CacheCorruptError: a member is missing, too much, or not of its exact dtype and shape.
    """
    group = f"views/{shard.view:04d}"
    file.expect_members(group, ["pixel_crc32", *(name for s in metadata.streams for name in (s, f"{s}_crc32"))])
    file.map(pixel_name(shard.view), "<u4", (num_hashed_rows(shard.start, shard.stop),))
    segments = {}
    for stream in metadata.streams:
        rows = file.map(payload_name(shard.view, stream), "u1", (shard.num_rows, metadata.row_bytes(stream)))
        checksums = file.array(checksum_name(shard.view, stream), "<u4", (-(-shard.num_rows // BLOCK_ROWS),))
        segments[stream] = Segment(str(file.path), shard.start, rows, checksums, file.mapping, file.num_bytes)
    return segments
