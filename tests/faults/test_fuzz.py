"""Faults 9, 26, 33, 41 and 44: a part of the trials of benchmarks/fuzz.py, with other numbers than its dated result.

No wrong value, no untyped error, no death, no hang over 5 s, no more than 512 MiB in any of them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUN = "import sys; from fuzz import fuzz; found = fuzz(sys.argv[1], int(sys.argv[2]), first=1_000_000)\n"
RUN += "print(found.num_trials, found.failures)"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("files", 200), ("documents", 70)])
def test_a_mutated_file_or_document_is_what_it_was_or_is_refused(kind: str, count: int) -> None:
    """In a process of its own: torch must not have started threads before it forks."""
    run = subprocess.run([sys.executable, "-c", RUN, kind, str(count)], cwd=BENCHMARKS, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout == f"{count} []\n"
