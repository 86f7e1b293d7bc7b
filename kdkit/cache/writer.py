"""ShardWriter: seals shards beside the teacher, so that it never waits for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
from typing_extensions import Self

from kdkit.cache.format import Shard
from kdkit.cache.parts import Parts

Array = np.ndarray[Any, Any]
_WAITING = 2  # shards that may wait to be sealed; bounds the memory


class ShardWriter:
    """Seals the shards it is given in the order they come, in one thread.

    A failure is raised by the next call of `submit`, or at the end of the `with` block. When that block is left by an
    error, shards that still wait are dropped: nothing has promised them.

    Args:
        parts: where the shards go.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kdkit-writer")
        self._pending: deque[Future[None]] = deque()

    def submit(self, shard: Shard, payloads: Mapping[str, Array], pixel_crc32: Array) -> None:
        """Queues one shard; waits while too many do. Arguments as for `Parts.seal`; the arrays are now the writer's."""
        while self._pending and (self._pending[0].done() or len(self._pending) >= _WAITING):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._parts.seal, shard, payloads, pixel_crc32))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            while self._pending:
                self._pending.popleft().result()
