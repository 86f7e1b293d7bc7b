"""How much of an epoch waits for images where loading is the limit, and what `kdkit distill` says about it.

    python benchmarks/waiting.py                               (about three minutes on 2 calm cores)

A light student at 64 pixels learns from a cache of 8 views of JPEG files of ImageNet's size (see decode.py), by the
command line with one loading process: with a decode for each view, and with one decode for several.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from _result import Report, parser
from decode import write_images

TEACHER, STUDENT, SIZE, VIEWS, EPOCHS = "test_efficientnet", "test_resnet", "64", "8", "8"
PER_DECODE = ("1", "4", "auto")
ADVICE = "of the epoch's time was spent waiting"


def kdkit(folder: Path, *arguments: str) -> str:
    """What a command of kdkit prints."""
    command = [sys.executable, "-m", "kdkit", *arguments, "--workers", "1", "--device", "cpu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return " ".join((done.stderr + done.stdout).split())


def shares(run: Path) -> list[float]:
    """The share of each epoch in which the student waited, from the run's table."""
    with (run / "summary.csv").open(newline="") as table:
        return [float(row["waiting"]) for row in csv.DictReader(table)]


def main() -> None:
    options = parser(__doc__).parse_args()
    report = Report("waiting", "Waiting for images", options.quick)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "train", 64 if options.quick else 768)
        size = ["--size", SIZE, "--views", VIEWS, "--codec", "float16"]
        teach = ["--student", TEACHER, "--epochs", "1", "--size", SIZE, "-o", "teacher"]
        kdkit(folder, "distill", "train", *teach)
        kdkit(folder, "cache", "build", "train", "--teacher", "teacher", *size, "-o", "t.h5")
        for views in PER_DECODE:
            run = f"k{views}"
            learn = ["--student", STUDENT, "--epochs", EPOCHS, "--lr", "1e-3", "--views-per-decode", views, "-o", run]
            shown = kdkit(folder, "distill", "train", "--cache", "t.h5", *learn)
            found = shares(folder / run)
            advice = f"{shown.partition(ADVICE)[0].split()[-1]} {ADVICE} ..." if ADVICE in shown else "none"
            waited = report.figure(f"{views} views per decode: share of waiting", sum(found) / len(found))
            rows.append([views, f"{waited:.0%}", f"{min(found):.0%} to {max(found):.0%}", advice])
    report.text(f"{STUDENT} at {SIZE} pixels, {EPOCHS} epochs, batches of the default size, one loading process.")
    report.table(["views per decode", "waiting", "range over the epochs", "advice"], rows)
    report.write(options.output)


if __name__ == "__main__":
    main()
