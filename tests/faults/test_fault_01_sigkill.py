"""Fault 1: a build is killed at a random moment, 60 times, and goes on each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SEEDS = 60


@pytest.mark.slow
def test_fault_01_a_build_killed_at_60_random_moments_resumes_and_equals_an_undisturbed_one(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "kill_builds.py"), str(tmp_path), str(SEEDS)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    states = run.stdout.splitlines()
    assert len(states) == SEEDS
    assert len(set(states)) >= 4, states  # the moments differed
