"""For every test: one thread per process, set before torch is imported, and the signal handlers restored after it."""

import os
import signal
from collections.abc import Iterator

import pytest

# The models are tiny: a second thread takes a core from the neighbouring test process and gives nothing back.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _keep_signal_handler() -> Iterator[None]:
    """A command that runs in the test's own process leaves its handler for SIGTERM behind."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
