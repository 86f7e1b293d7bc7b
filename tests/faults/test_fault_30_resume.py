"""Faults 20 and 30: a training is ended at random moments, and the resumed one equals an undisturbed one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SEEDS = "1"
CASES = [("live", "1"), ("cached", "2")]  # kill_trainings.py also knows the other two


@pytest.mark.slow
def test_fault_30_trainings_killed_at_random_moments_resume_and_equal_undisturbed_ones_bit_for_bit(
    tmp_path: Path,
) -> None:
    """SIGKILL and SIGTERM; one rank with a live teacher, two with a cache in the middle of a group of views."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "kill_trainings.py"), str(tmp_path), SEEDS, *sum(CASES, ())]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    ends = [line for line in run.stdout.splitlines() if line.startswith(("live", "cached"))]
    for case in CASES:
        left = [int(line.split()[-1]) for line in ends if line.split()[:2] == list(case)]
        assert any(update not in (0, max(left), max(left) / 2) for update in left), ends  # within an epoch
    assert any("SIGKILL" in line and "-9" in line for line in ends), ends
    assert any("SIGTERM" in line and "143" in line for line in ends), ends
