"""Stopping at the end of a step: a first signal asks for it, a second SIGINT does not ask."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kdkit.engine import ranks


class StopRequest:
    """Whether a signal has asked for the run to stop, and how the run then ends."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal is not None

    def leave(self) -> None:
        """Ends the run as the signal would have: KeyboardInterrupt for SIGINT, else SystemExit(128 + number)."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.signal or signal.SIGTERM))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            os._exit(128 + number)  # at once: not even a lock is waited for; what is on the disk is whole anyway
        self.signal = number
        print("kdkit: stopping after this step, with a checkpoint", file=sys.stderr, flush=True)


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
    except Exception:
        if stop.requested and ranks.world_size() > 1:  # another rank, told to stop too, has left already
            stop.leave()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
