"""Commands that are killed, or meet a full disk or an error, at counted calls and at random times.

    python benchmarks/kills.py                300 kills; ENOSPC and EIO at every call that the limit allows
    python benchmarks/kills.py --quick        some of each
    python benchmarks/kills.py --kills 100 --errors 200
    python benchmarks/kills.py --kills-of prune merge --errors-of --kills 400

Commands: build, extend by views and by images, prune, merge, recode, pack, import and distill, with 2 loader workers;
and three checkpoints of a run. After each disturbed run, a cache that is changed in place must be as it was or as it
will be. Then the same command runs again, at once and without a fault. It must work, end with the output of an
undisturbed run (weights and records of a run without times), and leave nothing beside it. A disturbed run must end by
itself, with its output or with an error of one line, unless it was killed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path

from _result import Report, parser

TESTS = Path(__file__).parents[1] / "tests"
SHARES = {
    "build": 0.2,
    "extend": 0.1,
    "pack": 0.1,
    "import": 0.1,
    "checkpoint": 0.0,
    "distill": 0.05,
    "add images": 0.15,
    "prune": 0.15,
    "merge": 0.075,
    "recode": 0.075,
}
"""Command -> its weight among those that are chosen; a run of distill takes ten times as long as the others. A run of
three checkpoints is no command, but so short that each of its calls can fail."""
ERRORS = ("ENOSPC", "EIO")
HEADER = ("command", "fault", "calls of a run", "trials", "killed", "one-line error", "ended well")


def compile_shim(folder: Path) -> Path:
    """The library that intercepts the calls of the C library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("kills.py needs a C compiler: it preloads a library that intercepts calls")
    library = folder / "shim.so"
    source = TESTS / "faults" / "shim.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def run(shim: Path, command: str, fault: str, trials: int) -> tuple[int, Counter[str], str]:
    """Calls of an undisturbed run, how the disturbed runs ended, and the failure that stopped them, if any."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "LD_PRELOAD": str(shim)}
    with tempfile.TemporaryDirectory() as folder:
        script = [sys.executable, str(TESTS / "faults" / "inject.py"), folder, str(shim), f"{command}:{fault}:{trials}"]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    failure = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]
    return (lines[0]["calls"] if lines else 0), Counter(line[-1] for line in lines[1:]), failure


def main() -> None:
    """Runs all trials and writes the dated result."""
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=300, help="number of kills, half of them at random times")
    arguments.add_argument("--errors", type=int, default=1000, help="greatest number of calls of a command that fail")
    arguments.add_argument("--kills-of", nargs="*", choices=SHARES, default=list(SHARES), help="commands to kill")
    arguments.add_argument("--errors-of", nargs="*", choices=SHARES, default=list(SHARES), help="commands that fail")
    options = arguments.parse_args()
    kills, errors = (20, 6) if options.quick else (options.kills, options.errors)
    whole = sum(SHARES[command] for command in options.kills_of) or 1.0
    trials = [(command, "kill", round(kills * SHARES[command] / whole)) for command in options.kills_of]
    trials += [(command, fault, errors) for command in options.errors_of for fault in ERRORS]
    rows: list[list[object]] = []
    failures: list[list[object]] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        shim = compile_shim(Path(folder))
        for command, fault, number in trials:
            if not number:
                continue
            calls, ends, failure = run(shim, command, fault, number)
            rows.append([command, fault, calls, ends.total(), *(ends[end] for end in ("killed", "refused", "done"))])
            failures += [[command, fault, failure]] if failure else []
            write(rows, failures, options, begun)  # an interrupted run leaves what it has found
    raise SystemExit(bool(failures))


def write(rows: list[list[object]], failures: list[list[object]], options: Namespace, begun: float) -> None:
    """Writes the result of the trials so far."""
    report = Report("kills", "Killed commands and failing file systems", options.quick, begun=begun)
    report.text(
        "Each repeat after a disturbed run worked at once, ended with the output of an undisturbed run, and left "
        "nothing beside it, unless a failure is listed. Before it, a cache that is changed in place was as before the "
        "disturbed run, or as after an undisturbed one. ENOSPC stays from its call on and meets calls that need space; "
        "EIO is of one call of any kind. A run that ended well met its fault where that changes nothing, or too late."
    )
    report.table(HEADER, rows)
    if failures:
        report.table(["command", "fault", "failure, after which no more were tried"], failures)
    report.figure("kills", sum(int(str(row[4])) for row in rows if row[1] == "kill"))
    report.figure("errors", sum(int(str(row[3])) for row in rows if row[1] != "kill"))
    report.figure("failures", len(failures))
    report.write(options.output)


if __name__ == "__main__":
    main()
