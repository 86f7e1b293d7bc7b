"""A line while PyTorch, or weights from the hub, take seconds to load, so that a command does not seem to hang."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS = 1.0
_WEIGHTS = "kdkit.teachers.hub"  # its logger: a module that is imported later, with PyTorch


@contextmanager
def loading_notice() -> Iterator[None]:
    """Within the context, standard error has a line before weights are loaded from the hub; and a terminal a line if
    PyTorch is still being loaded after a second."""
    handler, logger = logging.StreamHandler(), logging.getLogger(_WEIGHTS)
    handler.setFormatter(logging.Formatter("kdkit: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    timer = threading.Timer(_SECONDS, _tell)
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        logger.removeHandler(handler)


def _tell() -> None:
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    if getattr(spec, "_initializing", False):
        print("kdkit: loading PyTorch", file=sys.stderr, flush=True)
