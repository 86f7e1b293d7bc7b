"""What a loader's worker process does about signals: nothing, unless its parent sends them.

A terminal sends SIGINT, and Slurm and other supervisors SIGTERM, to every process of a run. The main process answers
with a checkpoint after the step, for which it needs its workers; so only the parent's own SIGTERM, by which
multiprocessing ends workers at exit, ends one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def leave_signals_to_parent(worker: int) -> None:
    """A worker_init_fn of torch's DataLoader. Without sigwaitinfo (macOS), SIGTERM ends a worker whoever sends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads that start later inherit it
    threading.Thread(target=_end_when_told_by, args=(parent.pid,), name="kdkit-sigterm", daemon=True).start()


def _end_when_told_by(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)
