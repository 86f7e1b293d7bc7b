"""Stopping on SIGINT and SIGTERM: the first signal stops the run after its step, a second SIGINT at once."""

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
    """The signal that requests a stop, if one has arrived, and how the run then ends."""

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
            os._exit(128 + number)  # at once, without waiting for any lock; every file on the disk is whole
        self.signal = number
        print(
            "kdkit: stopping after this step, with a checkpoint; the same command with --resume continues",
            file=sys.stderr,
            flush=True,
        )


_SECONDS = 2.0  # well below the 30 s that torchrun leaves between SIGTERM and SIGKILL


class StopAgreement:
    """Whether any rank has received a signal: an agreement of all ranks after the same steps, about every two seconds.

    A signal reaches ranks at different steps, and an exchange at each step would make them wait for each other. So each
    exchange also fixes the number of calls until the next one.
    """

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._interval = self._left = 1
        self._last_exchange = time.monotonic()

    def __call__(self, *, now: bool = False) -> bool:
        """Returns the same on each rank; every rank calls this after each update and each batch of a validation.

        Args:
            now: whether the ranks exchange their state in this call and the next one, however recent the last
                exchange is: the next call may come much later than the last one did.
        """
        if distributed.world_size() == 1:
            return self._stop.requested
        self._left -= 1
        if self._left > 0 and not now:
            return False
        states = distributed.all_gather((self._stop.requested, time.monotonic() - self._last_exchange))
        pace = max(seconds for _, seconds in states) / max(1, self._interval - self._left)
        self._interval = 1 if now else max(1, min(2 * self._interval, int(_SECONDS / max(pace, 1e-6))))
        self._left = self._interval
        self._last_exchange = time.monotonic()
        return any(requested for requested, _ in states)


@contextmanager
def stop_request(*, enabled: bool = True) -> Iterator[StopRequest]:
    """Within the context, SIGINT and SIGTERM request a stop; only in the main thread, where Python allows it."""
    stop = StopRequest()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except Exception as error:
        # A rank that received the signal may have left and caused this error; kdkit's own errors have other causes.
        if stop.requested and distributed.world_size() > 1 and not isinstance(error, KdkitError):
            stop.exit()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
