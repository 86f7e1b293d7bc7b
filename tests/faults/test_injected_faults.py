"""Commands that are killed, or meet a full disk or an error, at each of their calls: part of them here.

`benchmarks/kills.py` runs the same trials in large number. A trial ends with the same command, at once and without a
fault: it works, ends with the same output, and leaves nothing beside it (faults 1, 5, 6, 37, 38, 42).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = {
    "build": 6,
    "extend": 6,
    "pack": 12,
    "import": 8,
    "distill": 2,
    "add images": 6,
    "prune": 8,
    "merge": 4,
    "recode": 4,
}
ERRORS = {
    "build": 6,
    "extend": 6,
    "pack": 30,
    "import": 10,
    "distill": 3,
    "add images": 6,
    "prune": 8,
    "merge": 4,
    "recode": 4,
}
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled shim."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler: calls of the C library are intercepted by a preloaded library")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    options = ["-shared", "-fPIC", "-O1", "-w", "-o", str(library)]
    subprocess.run([compiler, *options, str(HERE / "shim.c"), "-ldl"], check=True)
    return library


def disturbed(folder: Path, shim: Path, command: str, fault: str, trials: int) -> dict[str, int]:
    """How the disturbed runs ended -> number of trials; every repeat has worked."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    environment["LD_PRELOAD"] = str(shim)
    script = [sys.executable, str(HERE / "inject.py"), str(folder), str(shim), command, fault, str(trials)]
    run = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
    ends: dict[str, int] = {}
    for _, _, end in map(json.loads, run.stdout.splitlines()[1:]):
        ends[end] = ends.get(end, 0) + 1
    assert sum(ends.values()) == trials or fault == "ENOSPC"  # a pack has fewer calls that take room
    return ends


@pytest.mark.slow
@pytest.mark.parametrize(("command", "trials"), KILLS.items())
def test_a_killed_command_is_repeated_at_once_and_ends_equal(
    tmp_path: Path, shim: Path, command: str, trials: int
) -> None:
    assert disturbed(tmp_path, shim, command, "kill", trials)["killed"] >= trials // 2


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
@pytest.mark.parametrize(("command", "trials"), ERRORS.items())
def test_a_full_disk_or_an_error_at_a_call_is_typed_and_the_command_can_be_repeated(
    tmp_path: Path, shim: Path, command: str, fault: str, trials: int
) -> None:
    assert disturbed(tmp_path, shim, command, fault, trials)["refused"] >= trials // 3
