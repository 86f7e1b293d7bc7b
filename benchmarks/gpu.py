"""One run of ten minutes on one GPU, for what no CPU can settle.

    python benchmarks/gpu.py [--only SECTION ...]        (on CUDA, of 24 GB or more)
    python benchmarks/gpu.py --quick                     (through to its end with tiny models, also on a CPU)

Each section runs alone in a process, within its own time, and says each finding as a line of JSON; in order of worth,
in case the time ends: tests encode build verify streams train resume ddp oom loader. The findings go to
benchmarks/results/DATE-gpu.md and .json; without CUDA nothing but --quick runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from _result import Report, parser

SECONDS = {"tests": 90, "encode": 80, "build": 110, "verify": 90, "streams": 40, "train": 120}
SECONDS |= {"resume": 60, "ddp": 80, "oom": 40, "loader": 50}
"""Section -> seconds after which it is ended."""
_PATIENCE = 6  # times as many on a CPU, which may be busy


def run_section(name: str, seconds: float) -> list[dict[str, Any]]:
    """The findings of a section, and how it ended."""
    begun = time.perf_counter()
    command = [sys.executable, __file__, "--section", name]
    try:
        run = subprocess.run(command, timeout=seconds, capture_output=True, text=True)
        output, end = run.stdout, "done" if run.returncode == 0 else run.stderr[-1500:]
    except subprocess.TimeoutExpired as error:
        output, end = (error.stdout or b"").decode(), f"ended after {seconds:.0f} s"
    findings = [json.loads(line) for line in output.splitlines() if line.startswith('{"what"')]
    findings.append({"what": f"section {name}", "end": end, "seconds": round(time.perf_counter() - begun, 1)})
    for finding in findings:
        print(json.dumps(finding), flush=True)
    return findings


def main() -> None:
    """Runs the sections that are named, or one of them in this process."""
    made = parser(__doc__)
    made.add_argument("--only", nargs="+", choices=list(SECONDS), default=list(SECONDS), help="sections to run")
    made.add_argument("--section", choices=list(SECONDS), help="run one section in this process")
    arguments = made.parse_args()
    if arguments.section is not None:
        import _gpu_sections

        try:
            getattr(_gpu_sections, arguments.section)()
        except Exception:
            sys.exit(traceback.format_exc())
        return
    import torch

    is_cuda = torch.cuda.is_available()
    if not is_cuda and not arguments.quick:
        sys.exit("benchmarks/gpu.py needs CUDA, and torch sees none here: nothing was measured (try --quick)")
    report = Report("gpu", "On a GPU", arguments.quick or not is_cuda)
    for name in arguments.only:
        findings = run_section(name, SECONDS[name] * (1 if is_cuda else _PATIENCE))
        report.figure(name, findings)
        report.text(f"## {name}")
        rows = [(finding.pop("what"), json.dumps(finding)) for finding in map(dict, findings)]
        report.table(("what", "found"), rows)
    report.write(arguments.output if arguments.output is None else Path(arguments.output))


if __name__ == "__main__":
    main()
