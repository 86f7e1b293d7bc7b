"""Payload: the encoded rows of one stream of one view, mapped read-only, gathered a batch at a time.

A block's checksum is verified on first access. Dimensions: B batch, R rows.
"""

from __future__ import annotations

import mmap
import zlib
from dataclasses import dataclass

import numpy as np

from kdkit.cache.format.constants import BLOCK_ROWS
from kdkit.cache.types import Array
from kdkit.errors import CacheCorruptError


@dataclass(frozen=True)
class Segment:
    """Rows from `start` on, as one file holds them."""

    path: str
    start: int
    rows: Array
    """uint8 [R, row_bytes], a memory map."""
    checksums: Array
    """uint32, one for each BLOCK_ROWS rows."""
    mapping: mmap.mmap
    """The whole file."""
    num_bytes: int
    """The file's size when it was opened."""
    file_crc32: int | None = None
    """CRC-32 of the whole file of a shard that nothing else ties to its manifest entry; compared at first touch."""

    def check_not_truncated(self) -> None:
        """Raises CacheCorruptError if the file was truncated since it was opened: reading past the end raises SIGBUS.

        One fstat, about a microsecond. The file can still be truncated between check and the read; no memory-mapped
        reader can prevent this. kdkit itself never changes a finished file.
        """
        if self.mapping.size() < self.num_bytes:
            raise CacheCorruptError(
                f"{self.path!r} was cut from {self.num_bytes} to {self.mapping.size()} bytes while it was open: its "
                f"rows from {self.start} on cannot be read; restore the file"
            )

    def check_sealed(self, view: int) -> None:
        """Raises CacheCorruptError unless the file is the one that was sealed: its own checksums fit any shard."""
        if zlib.crc32(self.mapping) != self.file_crc32:
            raise CacheCorruptError(
                f"{self.path!r}: view {view}, rows {self.start} to {self.start + len(self.rows) - 1} are not those "
                "that were sealed in this cache: delete the file and build again"
            )


class Payload:
    """One stream of one view, in one segment (packed) or several (sharded).

    Args:
        view, stream: the view and the stream, for errors.
        row_bytes: bytes of one row.
        segments: in row order, without gaps; each but the last a multiple of BLOCK_ROWS long.
        verify: verify each block on first access.
    """

    def __init__(self, view: int, stream: str, row_bytes: int, segments: list[Segment], *, verify: bool = True) -> None:
        self.view = view
        self.stream = stream
        self.row_bytes = row_bytes
        self.segments = segments
        self._only = segments[0] if len(segments) == 1 else None
        self._starts = np.array([segment.start for segment in segments])
        num_blocks = sum(len(segment.checksums) for segment in segments)
        self._unverified = np.full(num_blocks, verify)
        self._num_unverified = num_blocks if verify else 0
        self._unsealed = {index for index, segment in enumerate(segments) if segment.file_crc32 is not None}

    def read(self, rows: Array) -> Array:
        """The encoded rows, uint8 [B, row_bytes], in the order of `rows`; `rows` int64 [B], repeats allowed."""
        if self._num_unverified:
            self._verify(rows)
        only = self._only
        if only is not None:  # the usual case, in as few calls as it takes: each shows in the time of read_encoded
            if only.mapping.size() < only.num_bytes:
                only.check_not_truncated()
            return only.rows.take(rows, 0)  # quicker than indexing
        out = np.empty((len(rows), self.row_bytes), dtype=np.uint8)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for index in np.unique(owner):
            self.segments[index].check_not_truncated()
            mine = owner == index
            out[mine] = self.segments[index].rows[rows[mine] - self.segments[index].start]
        return out

    def verify_all(self) -> None:
        """Compares every checksum.

        Raises:
            CacheCorruptError: a block differs; names file, view and rows.
        """
        for block in range(len(self._unverified)):
            self._verify_block(block)

    def _verify(self, rows: Array) -> None:
        touched = rows // BLOCK_ROWS
        if self._unverified[touched].any():
            for block in np.unique(touched[self._unverified[touched]]):
                self._verify_block(int(block))

    def _verify_block(self, block: int) -> None:
        first = block * BLOCK_ROWS
        index = int(np.searchsorted(self._starts, first, side="right")) - 1
        segment = self.segments[index]
        local = first - segment.start
        segment.check_not_truncated()
        rows = segment.rows[local : local + BLOCK_ROWS]
        if zlib.crc32(np.ascontiguousarray(rows).data) != int(segment.checksums[local // BLOCK_ROWS]):
            raise CacheCorruptError(
                f"{segment.path}: view {self.view}, rows {first} to {first + len(rows) - 1} of {self.stream!r} "
                "do not match their checksum: restore the file, or build the cache again"
            )
        if index in self._unsealed:
            segment.check_sealed(self.view)
            self._unsealed.discard(index)
        self._unverified[block] = False
        self._num_unverified = int(self._unverified.sum())  # not one less: two threads may verify the same block
