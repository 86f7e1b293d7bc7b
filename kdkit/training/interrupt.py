"""Stopping at the end of a step: a first signal asks for it, a second SIGINT does not ask."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kdkit.errors import KdkitError
from kdkit.runtime import distributed


class StopRequest:
    """Whether a signal has asked for the run to stop, and how the run then ends."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal is not None

    def exit(self) -> None:
        """Ends the run as the signal would have: KeyboardInterrupt for SIGINT, else SystemExit(128 + number)."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.signal or signal.SIGTERM))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            os._exit(128 + number)  # at once: not even a lock is waited for; what is on the disk is whole anyway
        self.signal = number
        print("kdkit: stopping after this step, with a checkpoint", file=sys.stderr, flush=True)


_SECONDS = 2.0  # well below the 30 s that torchrun leaves between SIGTERM and SIGKILL


class StopAgreement:
    """Whether some rank was told to stop, asked by all of them after the same steps, about every two seconds.

    A signal reaches ranks at different steps, and asking at each would make them wait for each other; so how many
    updates go by until the next question is agreed on with the answer.
    """

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._interval = self._left = 1
        self._asked = time.monotonic()

    def __call__(self, *, now: bool = False) -> bool:
        """The same answer on each rank; every rank calls this after each update, and each batch of a validation.

        Args:
            now: whether all are asked now, however long ago they were, and again at the next call: what follows may
                take longer than what went before.
        """
        if distributed.world_size() == 1:
            return self._stop.requested
        self._left -= 1
        if self._left > 0 and not now:
            return False
        told = distributed.all_gather((self._stop.requested, time.monotonic() - self._asked))
        pace = max(seconds for _, seconds in told) / max(1, self._interval - self._left)
        self._interval = 1 if now else max(1, min(2 * self._interval, int(_SECONDS / max(pace, 1e-6))))
        self._left = self._interval
        self._asked = time.monotonic()
        return any(requested for requested, _ in told)


@contextmanager
def stop_request(*, enabled: bool = True) -> Iterator[StopRequest]:
    """Within the context, SIGINT and SIGTERM are requests; Python allows that in the main thread alone."""
    stop = StopRequest()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except Exception as error:
        # Another rank, told to stop too, has left already. What kdkit itself refuses (a full disk) is no such thing.
        if stop.requested and distributed.world_size() > 1 and not isinstance(error, KdkitError):
            stop.exit()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
