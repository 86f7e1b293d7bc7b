"""How much of an epoch waits for images where loading is the limit, and what `kdkit distill` says about it.

    python benchmarks/waiting.py                               (about five minutes on 2 calm cores)

A light student at 64 pixels learns from a cache of 4 views, by the command line with one loading process: with a decode
for each view, and with one decode for several. Images are JPEG files of ImageNet's size (see decode.py), and the same
as a camera stores them, 2000 x 1500 pixels.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from _loading import write_images
from _result import Report, parser
from PIL import Image

TEACHER, STUDENT, SIZE, VIEWS, EPOCHS = "test_efficientnet", "test_resnet", "64", "4", "4"
IMAGES = {"500 x 375": (768, 1), "2000 x 1500": (384, 4)}
"""Size of the files in pixels -> how many, and how many times ImageNet's."""
PER_DECODE = ("1", "4", "auto")
ADVICE = "of the epoch's time was spent waiting for images: "


def kdkit(folder: Path, *arguments: str) -> str:
    """What a command of kdkit prints."""
    command = [sys.executable, "-m", "kdkit", *arguments, "--workers", "1", "--device", "cpu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return " ".join((done.stderr + done.stdout).split())


def write(folder: Path, count: int, times: int) -> None:
    """`count` JPEG files whose sides are `times` ImageNet's."""
    write_images(folder, count)
    for path in folder.rglob("*.jpg") if times > 1 else ():
        with Image.open(path) as image:
            image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC).save(path, quality=90)


def shares(run: Path) -> list[float]:
    """The share of each epoch in which the student waited, from the run's table."""
    with (run / "summary.csv").open(newline="") as table:
        return [float(row["waiting"]) for row in csv.DictReader(table)]


def measure(report: Report, folder: Path, pixels: str, count: int, times: int) -> Iterator[list[object]]:
    """A line of the table for each number of views per decode, over files of these pixels."""
    write(folder / "train", count, times)
    teach = ["--student", TEACHER, "--epochs", "1", "--size", SIZE, "-o", "teacher"]
    kdkit(folder, "distill", "train", *teach)
    size = ["--size", SIZE, "--views", VIEWS, "--codec", "float16"]
    kdkit(folder, "cache", "build", "train", "--teacher", "teacher", *size, "-o", "t.h5")
    for views in PER_DECODE:
        learn = ["--student", STUDENT, "--epochs", EPOCHS, "--lr", "1e-3", "--views-per-decode", views, "-o", views]
        shown = kdkit(folder, "distill", "train", "--cache", "t.h5", *learn)
        found = shares(folder / views)
        waited = report.figure(f"{pixels}, {views} views per decode: share of waiting", sum(found) / len(found))
        before, advice, after = shown.partition(ADVICE)
        line = f"{before.split()[-1]} {advice}{after.partition(' smaller source images')[0]} ..." if advice else "none"
        yield [pixels, count, views, f"{waited:.0%}", f"{min(found):.0%} to {max(found):.0%}", line]


def main() -> None:
    options = parser(__doc__).parse_args()
    report, rows = Report("waiting", "Waiting for images", options.quick), list[list[object]]()
    for pixels, (count, times) in IMAGES.items():
        with tempfile.TemporaryDirectory() as name:
            rows += measure(report, Path(name), pixels, 64 if options.quick else count, times)
    report.text(
        f"""{STUDENT} at {SIZE} pixels, {EPOCHS} epochs, batches of the default size, one loading process. The advice is
        printed once, after an epoch that waited for more than a fifth of its time and for at least five seconds."""
    )
    report.table(["files", "images", "views per decode", "waiting", "range over the epochs", "what is printed"], rows)
    report.write(options.output)


if __name__ == "__main__":
    main()
