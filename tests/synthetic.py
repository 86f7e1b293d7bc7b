"""Caches without a teacher: small, fast, and with rows that a test can compute for itself."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdkit import CacheSpec, CacheWriter, open_cache
from kdkit.cache import create_codec
from kdkit.cache.format.constants import hashed_rows
from kdkit.cache.format.metadata import CacheMetadata, Shard

CLASSES = 6


@dataclass(frozen=True)
class Synthetic:
    """A float32 cache of R rows and V views of 6 classes; the value of each row follows from its number and view."""

    num_rows: int = 2300
    num_views: int = 2
    shard_rows: int = 1000
    prefix: str = "key"

    @property
    def keys(self) -> list[str]:
        return [f"{self.prefix}-{row}" for row in range(self.num_rows)]

    @property
    def metadata(self) -> CacheMetadata:
        return self.spec.metadata

    @property
    def spec(self) -> CacheSpec:
        return CacheSpec(
            keys=self.keys,
            num_views=self.num_views,
            codecs={"logits": create_codec("float32", CLASSES)},
            teacher={"name": "none", "dtype": "torch.float32", "weights_sha256": "0" * 64},
            recipe={"size": 8},
            class_names=[str(i) for i in range(CLASSES)],
            shard_rows=self.shard_rows,
            has_pixels=True,
        )

    def rows(self, view: int, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        """Encoded rows, uint8 [R, 24]."""
        row = np.arange(start, self.num_rows if stop is None else stop)[:, None]
        values = np.sin(row * 12.9898 + np.arange(CLASSES) * 78.233 + view * 3.7) * 5
        return np.ascontiguousarray(values.astype("<f4")).view("u1").reshape(-1, 4 * CLASSES)

    def start(self, path: Path) -> CacheWriter:
        return CacheWriter.create(path, self.spec)

    def seal(self, writer: CacheWriter, shard: Shard) -> None:
        pixels = np.asarray(hashed_rows(shard.start, shard.stop), dtype="<u4") * 3 + shard.view
        writer.seal(shard, {"logits": self.rows(shard.view, shard.start, shard.stop)}, pixels)

    def build(self, path: Path, *, packed: bool = True) -> Path:
        """Builds or resumes what is at `path`, as the engine does, and returns where the cache is."""
        with self.start(path) as writer:
            for shard in writer.missing():
                self.seal(writer, shard)
            return writer.finish(pack=packed)

    def assert_exact(self, path: Path, views: Sequence[int] | None = None) -> None:
        """Opens the cache and compares every row, every key and every digest; a CacheError is let through."""
        cache = open_cache(path)
        assert (cache.num_rows, cache.num_views, cache.num_classes) == (self.num_rows, self.num_views, CLASSES)
        order = np.random.default_rng(0).permutation(self.num_rows)
        for view in range(self.num_views) if views is None else views:
            found = cache.read_encoded(order, view).numpy()
            assert np.array_equal(found, self.rows(view)[order]), f"wrong rows in view {view}"
        assert cache.keys() == self.keys
        matched = cache.match_keys(self.keys)
        assert np.array_equal(matched, np.arange(self.num_rows))
        for view in range(self.num_views):
            hashes = cache.pixel_crc32(view)
            assert hashes == {row: row * 3 + view for row in hashed_rows(0, self.num_rows)}

    def replace(self, **changes: Any) -> Synthetic:
        return dataclasses.replace(self, **changes)


def read_in_process(pickled: bytes, queue: Any) -> None:
    """Puts what another process reads: (rows of view 1 of each cache, pixels of row 3 in view 1), as bytes."""
    caches, dataset, rows = pickle.loads(pickled)
    found = [cache.read_encoded(rows, 1).numpy().tobytes() for cache in caches]
    queue.put((found, dataset[3, 1].image.numpy().tobytes()))
