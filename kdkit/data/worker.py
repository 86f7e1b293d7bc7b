"""Signals in a worker process of a loader: it ignores them, unless its parent sends them.

A terminal sends SIGINT, and Slurm and other supervisors send SIGTERM, to every process of a run. The main process then
writes a checkpoint after the current step, and needs its workers until then. So only a SIGTERM of the parent, by which
multiprocessing ends workers at exit, ends a worker. A worker whose parent is gone ends as well: torch's own watchdog
takes whatever is the parent at its start for the manager, so a worker that starts while its parent is killed would
live on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

_SECONDS_BETWEEN_LOOKS = 1.0


def leave_signals_to_parent(worker: int) -> None:
    """A worker_init_fn of torch's DataLoader. Without sigtimedwait (macOS), every SIGTERM ends a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None or not hasattr(signal, "sigtimedwait"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads that start later inherit it
    threading.Thread(target=_end_with, args=(parent.pid,), name="kdkit-sigterm", daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process on a SIGTERM of the parent, or when that is gone."""
    started_by = os.getppid()  # the parent, or the fork server
    while True:
        received = signal.sigtimedwait({signal.SIGTERM}, _SECONDS_BETWEEN_LOOKS)
        if received is not None and received.si_pid == parent:
            os._exit(0)  # as torch's workers do: another code would be an error to the parent that ends it
        if os.getppid() != started_by or _is_gone(parent):
            os._exit(128 + signal.SIGTERM)


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
