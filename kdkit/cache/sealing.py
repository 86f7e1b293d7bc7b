"""ShardSealer: encodes and seals the shards of a cache. Dimensions: R rows of a shard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from kdkit.cache.codecs import RowCodec
from kdkit.cache.encoding import as_tensor, check_encodable, encode_rows
from kdkit.cache.extension import Extension
from kdkit.cache.file import CacheFile
from kdkit.cache.format.constants import num_hashed_rows
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.cache.lazy_arrays import shard_pixels, stored_keys
from kdkit.cache.opening import open_index
from kdkit.cache.shards.folder import ShardFolder, packed_file
from kdkit.cache.types import Array
from kdkit.errors import CacheError, ShapeError

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class ShardSealer:
    """The part of a `CacheWriter` that every process has: it lists the missing shards and seals them.

    Attributes:
        path: path of the cache, finished or not: the packed file, or the folder where a folder of shards is extended.
        metadata: contents and origin of the cache.
    """

    def __init__(self, path: Path, metadata: CacheMetadata, work: ShardFolder | Extension | None) -> None:
        self.path = path
        self.metadata = metadata
        self._work = work
        self._codecs: Mapping[str, RowCodec] | None = None

    @property
    def codecs(self) -> Mapping[str, RowCodec]:
        """Stream name -> its codec, fitted as the cache's index holds it."""
        if self._codecs is None:
            self._codecs = CacheFile(self.path).codecs if self._open_work() is None else open_index(self._parts)
        return self._codecs

    def missing(self) -> list[Shard]:
        """The shards that are not sealed, in order; each names its view and its rows from `start` to before `stop`."""
        work = self._open_work()
        return [] if work is None else work.missing()

    def sealed(self) -> list[Shard]:
        """The shards that are sealed already and not packed yet, in order."""
        return [] if self._open_work() is None else [s for s in self.metadata.shards() if self._parts.is_sealed(s)]

    def is_sealed(self, shard: Shard) -> bool:
        """Whether one of `missing()` has been sealed since, perhaps by another process."""
        return self._open_work() is None or self._parts.is_sealed(shard)

    def pixel_crc32(self, shard: Shard) -> dict[int, int]:
        """Row -> CRC-32 of its pixels, for the hashed rows of a sealed shard; empty if the cache has no pixels."""
        return shard_pixels(self._parts.shard_path(shard), shard) if self.metadata.has_pixels else {}

    def read(self, shard: Shard) -> dict[str, Array]:
        """Stream -> encoded rows uint8 [R, row_bytes] of a sealed shard, all of its file compared with its checksum.

        Raises:
            CacheCorruptError: it is not sealed, or has changed since.
        """
        self._parts.verify(shard)
        return {stream: segment.rows for stream, segment in self._parts.open_shard(shard).items()}

    def write(self, shard: Shard, outputs: Mapping[str, Tensor | Array], pixel_crc32: Array | None = None) -> None:
        """Encodes the teacher's outputs on a shard and seals it; measures fidelity if the spec measures views.

        Args:
            shard: one of `missing()`.
            outputs: stream -> float [R, ...], one row for each of the shard's R rows, on any device.
            pixel_crc32: as for `seal`.

        Raises:
            ShapeError: the streams differ from the cache's, or have another number of rows.
            NonFiniteOutputError: some values are NaN, infinite, or beyond the codec's range; names samples.
            CacheError: the shard is sealed already with other contents, cannot be written, or the disk is full.
        """
        if set(outputs) != set(self.codecs):
            raise ShapeError(f"{shard}: got outputs of {sorted(outputs)}, expected {sorted(self.codecs)}")
        payloads, fidelity = {}, {}
        for stream, codec in self.codecs.items():
            values = as_tensor(outputs[stream])
            if values.shape[:1] != (shard.num_rows,):
                raise ShapeError(f"{shard}: got {stream} {list(values.shape)}, expected {shard.num_rows} rows")
            name = str(self.metadata.teacher["name"])
            check_encodable(values, codec, stream, teacher=name, view=shard.view, keys=lambda: self._keys(shard))
            payloads[stream], measures = encode_rows(codec, values, self._measured(stream, shard))
            if measures is not None:
                fidelity[stream] = measures
        self.seal(shard, payloads, pixel_crc32, fidelity)

    def seal(
        self,
        shard: Shard,
        payloads: Mapping[str, Array],
        pixel_crc32: Array | None = None,
        fidelity: Mapping[str, Array] = _NOTHING,
    ) -> None:
        """Writes the encoded rows of a shard, then its manifest entry, both durably; then the shard exists.

        Args:
            shard: one of `missing()`.
            payloads: stream -> encoded rows, uint8 [R, row_bytes].
            pixel_crc32: CRC-32 of the pixels of `hashed_rows(shard.start, shard.stop)`, uint32, for a cache that has
                pixels; else None.
            fidelity: stream -> its measures, float32 [rows, measures], if the spec has views measured.

        Raises:
            CacheError: the arrays do not fit the spec, the cache has no such shard or holds it with other contents, or
            the file system refuses; a CacheDiskFullError if the disk is full.
        """
        work = self._open_work()
        first_view = work.old.num_views if isinstance(work, Extension) else 0
        if work is None or not self.metadata.plans(shard, first_view):
            raise CacheError(f"{shard}: the cache {str(self.path)!r} has no such shard to seal: take one of missing()")
        if (pixel_crc32 is None) == self.metadata.has_pixels:
            found, expected = ("no", "some") if pixel_crc32 is None else ("some", "none, as has_pixels is false")
            raise CacheError(f"{shard}: got {found} pixel hashes, the spec of the cache expects {expected}")
        hashes = np.zeros(num_hashed_rows(shard.start, shard.stop), "<u4") if pixel_crc32 is None else pixel_crc32
        self._parts.seal(shard, payloads, hashes, fidelity)

    @property
    def _parts(self) -> ShardFolder:
        """Where shards are sealed."""
        work = self._open_work()
        if work is None:
            raise CacheError(f"the cache {str(self.path)!r} is finished: no shard of it is missing")
        return work.parts if isinstance(work, Extension) else work

    def _open_work(self) -> ShardFolder | Extension | None:
        """The shards to seal; None from when they are packed, by this process or another."""
        parts = self._work.parts if isinstance(self._work, Extension) else self._work
        if parts is not None and not parts.index.is_file():
            packed = packed_file(parts.folder)
            if packed.is_file() and self._is_this_cache(CacheFile(packed).metadata):
                self.path, self._work = packed, None
        return self._work

    def _is_this_cache(self, packed: CacheMetadata) -> bool:
        same = packed.identity_sha256 == self.metadata.identity_sha256
        return same and packed.num_views >= self.metadata.num_views

    def _keys(self, shard: Shard) -> list[str]:
        return stored_keys(self._parts.folder, self.metadata.num_rows)[shard.start : shard.stop]

    def _measured(self, stream: str, shard: Shard) -> range | None:
        """Positions in the shard of the measured rows; None if the stream is not measured."""
        if not self.metadata.measures_views(stream):
            return None
        rows = self.metadata.measured_rows(stream, shard.start, shard.stop)
        return range(rows.start - shard.start, rows.stop - shard.start, rows.step)
