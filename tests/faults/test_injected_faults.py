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

pytestmark = pytest.mark.xdist_group("injected")  # they share what takes long to set up


KILLS = {
    "build": 2,
    "extend": 2,
    "pack": 4,
    "import": 2,
    "checkpoint": 6,
    "distill": 1,
    "add images": 2,
    "prune": 3,
    "merge": 2,
    "recode": 2,
}
ERRORS = KILLS
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[str]]:
    """(command, fault) -> how each disturbed run ended; all trials in one process, and every repeat has worked."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler: calls of the C library are intercepted by a preloaded library")
    folder = tmp_path_factory.mktemp("injected")
    library = str(folder / "shim.so")
    options = ["-shared", "-fPIC", "-O1", "-w", "-o", library]
    subprocess.run([compiler, *options, str(HERE / "shim.c"), "-ldl"], check=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    requests = [f"{command}:kill:{trials}" for command, trials in KILLS.items()]
    requests += [f"{command}:{fault}:{trials}" for command, trials in ERRORS.items() for fault in ("ENOSPC", "EIO")]
    script = [sys.executable, str(HERE / "inject.py"), str(folder), library, *requests]
    run = subprocess.run(script, env=environment | {"LD_PRELOAD": library}, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-300:] + run.stderr[-2000:]
    found: dict[tuple[str, str], list[str]] = {}
    for line in map(json.loads, run.stdout.splitlines()):
        if isinstance(line, list):
            found.setdefault((line[0], line[1]), []).append(line[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("command", "trials"), KILLS.items())
def test_a_killed_command_is_repeated_at_once_and_ends_equal(
    ends: dict[tuple[str, str], list[str]], command: str, trials: int
) -> None:
    found = ends[command, "kill"]
    assert len(found) == trials
    assert found.count("killed") >= trials // 2


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
@pytest.mark.parametrize(("command", "trials"), ERRORS.items())
def test_a_full_disk_or_an_error_at_a_call_is_typed_and_the_command_can_be_repeated(
    ends: dict[tuple[str, str], list[str]], command: str, fault: str, trials: int
) -> None:
    found = ends[command, fault]
    assert len(found) == trials
    assert found.count("refused") >= trials // 3
