"""Fault 1: a build, or an extension, is killed at random moments, and goes on each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _killed(folder: Path, what: str, seeds: int) -> list[str]:
    """In what state each kill left the cache."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "kill_builds.py"), str(folder), what, str(seeds)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    states = run.stdout.splitlines()
    assert len(states) == seeds
    return states


@pytest.mark.slow
def test_fault_01_a_build_killed_at_24_random_moments_resumes_and_equals_an_undisturbed_one(tmp_path: Path) -> None:
    states = _killed(tmp_path, "build", 24)
    assert len(set(states)) >= 3, states  # the moments differed


@pytest.mark.slow
def test_fault_01_an_extension_killed_at_12_random_moments_leaves_a_finished_cache_and_resumes(tmp_path: Path) -> None:
    states = _killed(tmp_path, "extend", 12)
    assert len(set(states)) >= 3, states
