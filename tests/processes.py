"""Processes forked from one that has imported torch, timm and kdkit, which take seconds to load in each new process."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = ("kdkit.cli", "kdkit.training.distill", "kdkit.building.build", "timm", "pytest", "support", "processes")
HERE = Path(__file__).parent


@functools.cache
def forked() -> ForkServerContext:
    """What starts such processes; it is also multiprocessing's own "forkserver"."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *sys.path])  # Python before 3.12.9 gives the server no path
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def run_ranks(script: str, *arguments: str, ranks: int, succeeds: bool = True) -> None:
    """Runs a script below tests/ in `ranks` processes of one group, and ends the others when one fails.

    Asserts that all succeed, or that one does not. torchrun itself starts the commands of tests/distributed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": f"{ranks}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    processes = [
        forked().Process(
            target=_run_rank, args=(HERE / script, arguments, group | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"})
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    codes = _wait_for_all(processes, seconds=300)
    assert any(codes) != succeeds, f"{script}: exit codes {codes}"


def _run_rank(script: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    multiprocessing.set_start_method(None, force=True)  # its own workers start as they do elsewhere
    os.environ.update(environment)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def _wait_for_all(processes: Sequence[BaseProcess], seconds: float) -> list[int | None]:
    """Their exit codes, once all have ended, or one has failed and the others were ended."""
    deadline = time.monotonic() + seconds
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes) or time.monotonic() > deadline:
            for process in processes:
                process.terminate()
            break
        time.sleep(0.02)
    for process in processes:
        process.join(30)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]
