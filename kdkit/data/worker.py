"""Signals in a worker process of a loader: it ignores them, unless its parent sends them.

A terminal sends SIGINT, and Slurm and other supervisors send SIGTERM, to every process of a run. The main process then
writes a checkpoint after the current step, and needs its workers until then. So only a SIGTERM of the parent, by which
multiprocessing ends workers at exit, ends a worker.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def leave_signals_to_parent(worker: int) -> None:
    """A worker_init_fn of torch's DataLoader. Without sigwaitinfo (macOS), every SIGTERM ends a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads that start later inherit it
    threading.Thread(target=_end_on_sigterm_of, args=(parent.pid,), name="kdkit-sigterm", daemon=True).start()


def _end_on_sigterm_of(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)
