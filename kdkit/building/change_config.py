"""Configuration of the commands that change finished caches without a teacher: prune, merge, recode."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdkit.config import ColumnsConfig, Data, MismatchConfig


@dataclass(frozen=True, kw_only=True)
class CachePruneConfig(ColumnsConfig, MismatchConfig):
    """Cache to remove images from."""

    cache: str
    """Cache file; it is replaced in one step."""

    data: Data
    """Images to keep; rows of all others are removed."""


@dataclass(frozen=True, kw_only=True)
class CacheMergeConfig:
    """Caches of different images to merge."""

    caches: tuple[str, ...]
    """Caches that were made alike: same teacher, recipe, streams and classes."""

    output: str
    """Cache file to write; a merge that was stopped resumes there."""


@dataclass(frozen=True, kw_only=True)
class CacheRecodeConfig:
    """Cache to write again with fewer bytes."""

    cache: str
    """Cache: its file or its folder of shards; it stays as it is."""

    output: str | None = None
    """Cache file to write, where a stopped recoding resumes; by default beside FILE, e.g. teacher.lowrank-48.h5."""

    codec: str | None = None
    """Codec of the logits: float16, int8, topk or lowrank; lowrank if only bytes are given; unchanged by default."""

    row_bytes: int | None = None
    """Maximum bytes per row of logits, for the codecs lowrank and topk."""

    codec_options: dict[str, Any] = field(default_factory=dict)
    """Options of the codec, e.g. {k: 10} for topk."""

    feature_codec: str | None = None
    """Codec of all other streams: float32, float16, int8, sparse, dense or compact; compact if only its bytes are
    given; unchanged by default."""

    feature_bytes: int | None = None
    """Bytes per row of each stream of features in sparse, dense or compact; a tenth of float16's by default."""

    num_views: int | None = None
    """Views to keep of each image, the first ones; all by default."""

    @property
    def place(self) -> Path:
        """Where the cache is written: `output`, or beside the old one under a name that tells the change."""
        if self.output is not None:
            return Path(self.output)
        old = Path(self.cache)
        codec = [self.codec or "lowrank" if self.row_bytes else self.codec, self.row_bytes and str(self.row_bytes)]
        size = None if self.feature_bytes is None else str(self.feature_bytes)
        features = [self.feature_codec or (size and "compact"), size]
        views = None if self.num_views is None else f"{self.num_views}-views"
        changes = "-".join(part for part in (*codec, *features, views) if part)
        return old.with_name(f"{old.name.removesuffix('.parts').removesuffix('.h5')}.{changes or 'recoded'}.h5")
