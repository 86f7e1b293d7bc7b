"""What the faults found from outside did before they were mended, and what they do now.

    python benchmarks/faults_before.py                     version 970d0ad and this tree; a quarter of an hour
    python benchmarks/faults_before.py --only 33 38        some faults
    python benchmarks/faults_before.py --before HEAD~100   another version

Faults of docs/faults.md from 33 on are caused in the same way with both versions. What a machine without GPUs lacks is
replaced: the words of a backend that is out of memory (46), the end of a process group, which waits under NCCL alone
(47), and the kernels of another device, which round elsewhere (49).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from _result import Report, parser
from kills import compile_shim

ROOT = Path(__file__).parents[1]


def run(checkout: Path, shim: Path, faults: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Fault -> what was done and what happened, with the kdkit of one checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "LD_PRELOAD": str(shim)}
    with tempfile.TemporaryDirectory() as folder:
        script = [sys.executable, str(Path(__file__).with_name("_before.py")), folder, str(shim), *faults]
        done = subprocess.run(script, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=folder)
    return {fault: (cause, found) for fault, cause, found in map(json.loads, done.stdout.splitlines())}


def main() -> None:
    """Runs both versions and writes the dated result."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="*", default=[], help="numbers of faults; all by default")
    arguments.add_argument("--before", default="970d0ad", help="the version before")
    options = arguments.parse_args()
    report = Report("faults_before", "Faults before and after", options.quick)
    faults = ["33", "44"] if options.quick else options.only
    with tempfile.TemporaryDirectory() as folder:
        shim, old = compile_shim(Path(folder)), Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", str(old), options.before], cwd=ROOT, check=True)
        try:
            before, now = run(old, shim, faults), run(ROOT, shim, faults)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
    report.text(
        f"Before is version {options.before}; now is this tree. Each fault is caused in the same way with both."
    )
    rows = [
        [fault, cause, found.replace("|", "/"), now[fault][1].replace("|", "/")]
        for fault, (cause, found) in before.items()
    ]
    report.table(["fault", "cause", "before", "now"], rows)
    report.figure("faults", {fault: {"before": before[fault][1], "now": now[fault][1]} for fault in before})
    report.write(options.output)


if __name__ == "__main__":
    main()
