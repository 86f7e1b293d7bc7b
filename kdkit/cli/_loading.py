"""A line while PyTorch loads, which takes seconds from a cold disk, so that a command does not seem to hang."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS = 1.0


@contextmanager
def loading_notice() -> Iterator[None]:
    """Within the context, a terminal shows a line if PyTorch is still being loaded after a second."""
    if not sys.stderr.isatty():
        yield
        return
    timer = threading.Timer(_SECONDS, _tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tell() -> None:
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    if getattr(spec, "_initializing", False):
        print("kdkit: loading PyTorch", file=sys.stderr, flush=True)
