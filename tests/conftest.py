"""For every test: one thread per process, set before torch is imported, the generators seeded, and the signal handlers
restored after it.

Commands in the test's own process take one view per decode where they would measure what is faster (`auto`): on a busy
machine two equal commands could choose differently, and show their images in another order.

Outside tests/faults no test waits until the disk has what it wrote, some milliseconds each time: only a loss of power
would show the difference, and what one leaves is the matter of tests/faults. Processes that a test starts do wait.
"""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

FAULTS = Path(__file__).parent / "faults"
MEASURED = Path(__file__).parent / "training" / "test_loading.py"

# The models are tiny: a second thread takes a core from the neighbouring test process and gives nothing back.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before the fixtures
def pytest_runtest_setup() -> None:
    """Each test draws the same numbers, whichever ran before it in its process."""
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if FAULTS not in request.path.parents:
            patch.setattr(os, "fsync", _checked_descriptor)
        yield


def _checked_descriptor(descriptor: int) -> None:
    """What is left of `os.fsync`: one that is not open is an error."""
    os.fstat(descriptor)


@pytest.fixture(scope="module", autouse=True)
def _no_choice_by_speed(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.path != MEASURED:
            patch.setattr("kdkit.training.loading._measure_loading", lambda dataset: None)
        yield


@pytest.fixture(autouse=True)
def _keep_signal_handler() -> Iterator[None]:
    """A command that runs in the test's own process leaves its handler for SIGTERM behind."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
