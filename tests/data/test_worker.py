"""Loader workers and signals: see also tests/faults, where runs are stopped and killed."""

from __future__ import annotations

import os
import signal

import pytest
from torch.utils.data import DataLoader

from kdkit.data.worker import leave_signals_to_parent


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="macOS has no sigtimedwait")
def test_a_worker_that_its_parent_ends_exits_without_an_error_as_torchs_own_do() -> None:
    batches = iter(DataLoader(range(8), num_workers=1, worker_init_fn=leave_signals_to_parent))
    next(batches)
    (worker,) = batches._workers  # type: ignore[attr-defined]
    os.kill(worker.pid, signal.SIGINT)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()  # as multiprocessing does when the process ends: torch's SIGCHLD handler raises at another code
    worker.join(20)
    assert worker.exitcode == 0
