"""Background: one thread that does what it is given, in order, so that whoever gives it need not wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from typing_extensions import Self


class Background:
    """Runs calls in the order they come, in one thread.

    A failure is raised by the next `submit`, or at the end of the `with` block; no call after it is run. When the block
    is left by an error, calls that still wait are dropped.

    Args:
        name: of the thread, for those who look at it.
        waiting: how many calls may wait or run before `submit` waits itself; bounds the memory that they hold.
    """

    def __init__(self, name: str, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._waiting = waiting
        self._pending: deque[Future[None]] = deque()
        self._failed = False

    def submit(self, call: Callable[[], None]) -> None:
        """Queues `call`; waits while too many do."""
        while self._pending and (self._pending[0].done() or len(self._pending) >= self._waiting):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._run, call))

    def _run(self, call: Callable[[], None]) -> None:
        if self._failed:  # what follows a failure may rest on what was not done
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
    """Something that works in a Background, and is entered and left with it."""

    def __init__(self, name: str, waiting: int) -> None:
        self._thread = Background(name, waiting)

    def __enter__(self) -> Self:
        self._thread.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.__exit__(kind, error, trace)
