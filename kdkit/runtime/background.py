"""Background work: a bounded, ordered single-thread executor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from typing_extensions import Self


class Background:
    """A bounded, ordered single-thread executor.

    A failure is raised by the next `submit`, or at the end of the `with` block; no call after it runs. When the block
    ends with an error, pending calls are dropped.

    Args:
        name: prefix of the thread's name, as debuggers show it.
        max_pending: calls that may be queued or running before `submit` blocks; bounds the memory that they hold.
    """

    def __init__(self, name: str, max_pending: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._max_pending = max_pending
        self._pending: deque[Future[None]] = deque()
        self._failed = False

    def submit(self, call: Callable[[], None]) -> None:
        """Queues `call`; blocks while `max_pending` calls are pending."""
        while self._pending and (self._pending[0].done() or len(self._pending) >= self._max_pending):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._run, call))

    def _run(self, call: Callable[[], None]) -> None:
        if self._failed:  # later calls may depend on the one that failed
            return
        try:
            call()
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            while self._pending:
                self._pending.popleft().result()


class Worker:
    """Base of objects that work in a Background; a context that starts and ends with it."""

    def __init__(self, name: str, max_pending: int) -> None:
        self._thread = Background(name, max_pending)

    def __enter__(self) -> Self:
        self._thread.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.__exit__(kind, error, trace)
