"""Piece: some rows of a finished cache, of which a new cache is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kdkit.cache import CachedTeacher
from kdkit.cache.codecs import RowCodec, codec_from_dict
from kdkit.cache.fidelity import FeatureSums
from kdkit.cache.format.constants import RECORDS
from kdkit.cache.types import Array


@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows of a cache."""

    cache: CachedTeacher
    rows: Array
    """Its rows, int64 [rows]."""

    def codec_is(self, stream: str, codec: RowCodec) -> bool:
        """Whether its rows of a stream are in this codec, with the same fit."""
        own = codecs_of(self.cache)[stream]
        same = own.to_dict() == codec.to_dict() and set(own.arrays) == set(codec.arrays)
        return same and all(np.array_equal(own.arrays[name], codec.arrays[name]) for name in codec.arrays)

    def sums_in(self, stream: str, codec: RowCodec, encoded_again: FeatureSums) -> Mapping[str, float]:
        """What `FeatureSums.summary` gives of its rows in this codec: as the build stored it, or of `encoded_again`."""
        stored = self.cache.metadata.fidelity.get(stream, {})
        return stored if self.codec_is(stream, codec) else encoded_again.summary()


def codecs_of(cache: CachedTeacher) -> dict[str, RowCodec]:
    """Stream -> its codec, that of recorded views included."""
    streams = cache.metadata.streams
    records = {RECORDS: codec_from_dict(RECORDS, streams[RECORDS]["codec"])} if RECORDS in streams else {}
    return {**cache.codecs, **records}
