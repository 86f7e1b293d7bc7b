"""All benchmarks, one after the other, each in its own process; then the summary, pictures and pages.

    python benchmarks/run.py                     everything; some hours on 2 calm CPU cores (each page has its minutes)
    python benchmarks/run.py --quick             small sizes, a test run
    python benchmarks/run.py --only read codecs  some of them
    python benchmarks/run.py --readme            no benchmark: summary, pictures and README from the newest results

Writes DATE-NAME.md, .json and .png in benchmarks/results, DATE-summary.md with every limit and whether it was met, the
figures of the README and of docs/benchmarks.md, and their pictures. A quick run leaves the last two alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import _front
import _pictures
import torch
from _claims import verdicts
from _result import RESULTS, Report, latest, parser

HERE = Path(__file__).parent
FRONT_PICTURES = ("kl-against-bytes.png", "students.png")
"""Pictures of docs/, whose newest versions are in the results."""


def benchmarks() -> list[str]:
    """Names of all benchmarks in this folder; the one for GPUs only if CUDA is available."""
    names = {path.stem for path in HERE.glob("[!_]*.py")} - {Path(__file__).stem}
    return sorted(names - ({"gpu"} if not torch.cuda.is_available() else set()))


def run(name: str, folder: Path, quick: bool) -> bool:
    """Runs a benchmark and returns whether it succeeded."""
    print(f"== {name} ==", flush=True)
    command = [sys.executable, str(HERE / f"{name}.py"), "--output", str(folder), *(["--quick"] if quick else [])]
    return subprocess.run(command, check=False).returncode == 0


def draw(folder: Path) -> None:
    """A picture of the newest result of each benchmark that has one."""
    for name in _pictures.PICTURES:
        try:
            _pictures.draw(latest(name, folder), folder)
        except FileNotFoundError as error:
            print(f"no picture: {error}")


def summarise(folder: Path, quick: bool, failed: Sequence[str]) -> None:
    """Writes one page with every target, its measurement and its source."""
    report = Report("summary", "All benchmarks", quick)
    report.text("Targets and measurements: median (quartiles) of interleaved turns where there are turns.")
    met = {True: "yes", False: "no", None: ""}
    report.table(
        ["what", "target", "measured", "met", "result"],
        [[v.claim.text, v.claim.target, v.shown, met[v.met], v.result] for v in verdicts(folder)],
    )
    if failed:
        report.text(f"These benchmarks failed: {', '.join(failed)}.")
    machines = {name: latest(name, folder)["machine"] for name in benchmarks() if any(folder.glob(f"*-{name}.json"))}
    report.text("Where each was measured:")
    report.table(["benchmark", "machine"], list(machines.items()))
    report.write(folder)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--only", nargs="*", choices=benchmarks(), default=benchmarks(), help="some benchmarks")
    made.add_argument("--readme", action="store_true", help="run no benchmark")
    args = made.parse_args()
    folder = args.output or (RESULTS / "quick" if args.quick else RESULTS)
    failed = [] if args.readme else [name for name in args.only if not run(name, folder, args.quick)]
    draw(folder)
    summarise(folder, args.quick, failed)
    if folder == RESULTS:
        for name in FRONT_PICTURES:
            for newest in sorted(RESULTS.glob(f"*-{name}"))[-1:]:
                shutil.copy(newest, HERE.parent / "docs" / name)
        _front.write()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
