"""ShardWriter: seals shards in a separate thread, so that the teacher never waits for the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from kdkit.cache.format.metadata import Shard
from kdkit.cache.types import Array
from kdkit.runtime.background import Worker

_WAITING = 2  # shards that may wait to be sealed; bounds the memory


class ShardWriter(Worker):
    """Seals queued shards in order, in one thread; fails as Background does.

    Args:
        seal: writes one shard durably; `CacheWriter.seal`.
    """

    def __init__(self, seal: Callable[[Shard, Mapping[str, Array], Array, Mapping[str, Array]], None]) -> None:
        super().__init__("kdkit-writer", _WAITING)
        self._seal = seal

    def submit(
        self, shard: Shard, payloads: Mapping[str, Array], pixel_crc32: Array, fidelity: Mapping[str, Array]
    ) -> None:
        """Queues one shard, and waits while too many are queued; the arrays belong to the thread from now on."""
        self._thread.submit(partial(self._seal, shard, payloads, pixel_crc32, fidelity))
