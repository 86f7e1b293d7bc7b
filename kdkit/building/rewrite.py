"""Write rows of finished caches as a new one: encoded rows are copied, or encoded again where a codec changes.

This is what merging, pruning, recoding and adding images have in common; the teacher does not run. Dimensions: R rows
of the new cache, S rows of a shard, M measures of a row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdkit.building.arrange import arrange
from kdkit.building.fit import measured_spacing
from kdkit.building.piece import Piece, codecs_of
from kdkit.cache import CacheSpec, CacheWriter
from kdkit.cache.codecs import RowCodec
from kdkit.cache.codecs.feature import SizedFeature
from kdkit.cache.encoding import check_encodable
from kdkit.cache.fidelity import FeatureSums, joined_sums, measure_rows, summarise_rows
from kdkit.cache.format.constants import BLOCK_ROWS, fidelity_columns, hashed_rows
from kdkit.cache.format.metadata import Shard
from kdkit.cache.lazy_arrays import BEGUN, begun_at, stored_fidelity
from kdkit.cache.types import Array

_logger = logging.getLogger(__name__)

HashPixels = Callable[[str, int], int]
"""(key, view) -> CRC-32 of the pixels, for rows whose hash no cache holds."""


class Rewrite:
    """A new cache of the rows of others, whose teacher, recipe and classes are the first one's.

    Args:
        pieces: rows of caches with the same streams, at least one row; no key occurs twice.
        codecs: stream -> its codec in the new cache, fitted; the first cache's by default. Rows in another codec are
            decoded and encoded again, and their fidelity is measured relative to their decoded values.
        num_views: number of views to keep, the first ones; all by default.
        hash_pixels: for rows that come to stand where a pixel hash is stored and have none.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        *,
        codecs: Mapping[str, RowCodec] | None = None,
        num_views: int | None = None,
        hash_pixels: HashPixels | None = None,
    ) -> None:
        self.pieces = [piece for piece in pieces if len(piece.rows)]
        self.first = pieces[0].cache
        self.codecs = {**codecs_of(self.first), **(codecs or {})}
        self.num_views = self.first.num_views if num_views is None else num_views
        self._hash_pixels = hash_pixels
        self._owner = np.concatenate([np.full(len(piece.rows), n) for n, piece in enumerate(self.pieces)])
        self._row = np.concatenate([piece.rows for piece in self.pieces])
        self._keys = [key for piece in self.pieces for key in _take(piece.cache.keys(), piece.rows)]
        self.has_pixels = all(piece.cache.metadata.has_pixels for piece in self.pieces)
        self._measured = {stream: self._is_measured(stream) for stream in self.codecs}
        streams = [stream for stream, mask in self._measured.items() if mask.any()]
        none = np.zeros(len(self._row), dtype=bool)
        measured = np.logical_and.reduce([self._measured[stream] for stream in streams]) if streams else none
        self._order, each = arrange(self._is_hashed(), measured, may_hash=hash_pixels is not None)
        self._each = {} if each is None else dict.fromkeys(streams, each)
        self._crc32 = lru_cache(maxsize=2 * len(self.pieces))(self._stored_crc32)
        self._fidelity = [stored_fidelity(piece.cache.path, piece.cache.metadata) for piece in self.pieces]

    def spec(self) -> CacheSpec:
        """Contents and origin of the new cache."""
        metadata = self.first.metadata
        versions = [piece.cache.metadata.dataset.get("versions") for piece in self.pieces]
        fidelity: dict[str, Any] = {}
        for stream, each in self._each.items():
            places = self._order[::each]
            sums = [FeatureSums() for _ in self.pieces]
            measures = self._measures(stream, 0, places, self._payload(stream, 0, places), sums)
            codec, pairs = self.codecs[stream], zip(self.pieces, sums, strict=True)
            parts = [(len(piece.rows), piece.sums_in(stream, codec, found)) for piece, found in pairs]
            fidelity[stream] = {**summarise_rows(measures), **joined_sums(parts), "each": each}
        return CacheSpec(
            keys=_take(self._keys, self._order),
            num_views=self.num_views,
            codecs=self.codecs,
            teacher=metadata.teacher,
            recipe=metadata.recipe,
            class_names=metadata.dataset["class_names"],
            shard_rows=metadata.shard_rows,
            fidelity=fidelity,
            versions=versions[0] if all(found == versions[0] for found in versions) else None,
            has_pixels=self.has_pixels,
            names_classes=self.first.names_classes,
            absent_keys=self._absent_keys(),
            content=self._content(),
            **({} if metadata.content_kind is None else {"content_kind": metadata.content_kind}),
        )

    def _content(self) -> Array | None:
        """The content record of each row, uint8 [R, 28], as in the caches; None if not all have records of one kind."""
        kinds = {str(piece.cache.path): piece.cache.metadata.content_kind for piece in self.pieces}
        if len({*kinds.values()}) > 1:
            _logger.warning("digests of images are left out, because the caches have other kinds of them: %s", kinds)
        if {*kinds.values()} not in ({"files"}, {"pixels"}):
            return None
        records: Array = np.concatenate([piece.cache.content()[piece.rows] for piece in self.pieces])[self._order]
        return records

    @property
    def begun(self) -> float | None:
        """When the first of the caches was begun, seconds since 1970: files that changed later may be others now."""
        times = [begun_at(piece.cache.path) for piece in self.pieces]
        known = [time for time in times if time is not None]
        return min(known) if len(known) == len(times) else None

    def _absent_keys(self) -> list[str]:
        """Keys that the caches have no rows for because their images could not be read, apart from those of rows."""
        known = set(self._keys)
        absent = (key for piece in self.pieces for key in piece.cache.absent_keys)
        return sorted({key for key in absent if key not in known})

    def fill(self, writer: CacheWriter, advance: Callable[[int], None]) -> None:
        """Seals the missing shards of the new cache; `advance` is called with the rows of each."""
        for shard in writer.missing():
            places = self._order[shard.start : shard.stop]
            payloads = {stream: self._payload(stream, shard.view, places) for stream in self.codecs}
            fidelity = {
                stream: self._measures(stream, shard.view, places[here], payloads[stream][here])
                for stream in self._each
                for here in [self._measured_in(stream, shard)]
            }
            writer.seal(shard, payloads, self._hashes(shard) if self.has_pixels else None, fidelity)
            advance(shard.num_rows)

    def _measured_in(self, stream: str, shard: Shard) -> Array:
        """Places in the shard of the measured rows."""
        each = self._each[stream]
        return np.arange(-shard.start % each, shard.num_rows, each)

    def _is_hashed(self) -> Any:
        """Whether the pixels of each row were hashed, bool [R]; true if the new cache has no hashes."""
        if not self.has_pixels:
            return np.ones(len(self._row), dtype=bool)
        pieces = [np.isin(piece.rows, hashed_rows(0, piece.cache.num_rows)) for piece in self.pieces]
        return np.concatenate(pieces)

    def _is_measured(self, stream: str) -> Any:
        """Whether the fidelity of each row was or can be measured, bool [R]."""
        found = []
        for piece in self.pieces:
            metadata = piece.cache.metadata
            each = int(metadata.fidelity[stream]["each"]) if metadata.measures_views(stream) else None
            stored = np.zeros(len(piece.rows), dtype=bool) if each is None else piece.rows % each == 0
            anew = piece.rows % measured_spacing(piece.cache.num_rows) == 0
            found.append(stored if piece.codec_is(stream, self.codecs[stream]) else anew)
        return np.concatenate(found)

    def _payload(self, stream: str, view: int, places: Array) -> Array:
        """Encoded rows of a view, uint8 [S, row_bytes]."""
        codec = self.codecs[stream]
        encoded = np.empty((len(places), codec.row_bytes), dtype=np.uint8)
        for piece, mine, rows in self._of_pieces(places):
            if piece.codec_is(stream, codec):
                encoded[mine] = piece.cache.read_encoded(rows, view, stream).numpy()
                continue
            for first in range(0, len(rows), BLOCK_ROWS):
                here = slice(first, first + BLOCK_ROWS)
                encoded[mine[here]] = codec.encode(self._decoded(piece, stream, view, rows[here])).numpy()
        return encoded

    def _decoded(self, piece: Piece, stream: str, view: int, rows: Array) -> torch.Tensor:
        """The values of rows of a cache that are encoded again, which the new codec can hold."""
        old = piece.cache.codecs[stream]
        values = old.decode(piece.cache.read_encoded(rows, view, stream))
        if isinstance(old, SizedFeature):
            values = self.codecs[stream].nearest(values)
        name, keys = str(piece.cache.teacher["name"]), piece.cache.keys
        check_encodable(values, self.codecs[stream], stream, teacher=name, view=view, keys=lambda: _take(keys(), rows))
        return values

    def _measures(
        self, stream: str, view: int, places: Array, payload: Array, sums: Sequence[FeatureSums] | None = None
    ) -> Array:
        """Fidelity of measured rows, float32 [S, M]: as stored, or relative to the values that were encoded again.

        These are added to `sums`, one for each piece.
        """
        codec = self.codecs[stream]
        measures = np.empty((len(places), fidelity_columns(stream)), dtype=np.float32)
        for piece, mine, rows in self._of_pieces(places):
            if piece.codec_is(stream, codec):
                each = int(piece.cache.metadata.fidelity[stream]["each"])
                measures[mine] = self._fidelity[self.pieces.index(piece)][stream][view][rows // each]
            else:
                values = self._decoded(piece, stream, view, rows)
                more = None if sums is None else sums[self.pieces.index(piece)]
                measures[mine] = measure_rows(codec, values, torch.from_numpy(payload[mine]), more)
        return measures

    def _of_pieces(self, places: Array) -> list[tuple[Piece, Array, Array]]:
        """Each piece with rows among `places`: which of them are its own, and its rows."""
        owners, rows = self._owner[places], self._row[places]
        own = [(piece, np.flatnonzero(owners == number)) for number, piece in enumerate(self.pieces)]
        return [(piece, mine, rows[mine]) for piece, mine in own if len(mine)]

    def _hashes(self, shard: Shard) -> Array:
        """CRC-32 of the pixels of the shard's hashed rows, uint32."""
        found = []
        for place in self._order[hashed_rows(shard.start, shard.stop)].tolist():
            known = self._crc32(int(self._owner[place]), shard.view).get(int(self._row[place]))
            if known is None:
                assert self._hash_pixels is not None, "rows without a hash stand where none is stored"
                known = self._hash_pixels(self._keys[place], shard.view)
            found.append(known)
        return np.array(found, dtype="<u4")

    def _stored_crc32(self, number: int, view: int) -> dict[int, int]:
        return self.pieces[number].cache.pixel_crc32(view)


def write_rows(rewrite: Rewrite, path: Path, record: Mapping[str, Any], advance: Callable[[int], None]) -> Path:
    """Writes the new cache at `path`, or resumes it, and returns its path; `record` as for `CacheWriter.finish`."""
    begun = rewrite.begun
    with CacheWriter.create(path, rewrite.spec()) as writer:
        rewrite.fill(writer, advance)
        return writer.finish(record={**record, BEGUN: begun})


def _take(keys: Sequence[str], rows: Array) -> list[str]:
    return [keys[row] for row in rows.tolist()]
