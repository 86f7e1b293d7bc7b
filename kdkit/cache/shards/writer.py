"""ShardWriter: seals shards beside the teacher, so that it never waits for the disk."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from kdkit.cache.format.metadata import Shard
from kdkit.cache.shards.folder import ShardFolder
from kdkit.runtime.background import Worker

Array = np.ndarray[Any, Any]
_WAITING = 2  # shards that may wait to be sealed; bounds the memory


class ShardWriter(Worker):
    """Seals the shards it is given in the order they come, in one thread; fails as Background does.

    Args:
        parts: where the shards go.
    """

    def __init__(self, parts: ShardFolder) -> None:
        super().__init__("kdkit-writer", _WAITING)
        self._parts = parts

    def submit(
        self, shard: Shard, payloads: Mapping[str, Array], pixel_crc32: Array, fidelity: Mapping[str, Array]
    ) -> None:
        """Queues one shard; waits while too many do. Arguments as for `Parts.seal`; the arrays are now the writer's."""
        self._thread.submit(partial(self._parts.seal, shard, payloads, pixel_crc32, fidelity))
