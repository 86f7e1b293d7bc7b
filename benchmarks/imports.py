"""Speed and memory of `kdkit cache import ml-dr`, relative to bare loops that read the same files.

    python benchmarks/imports.py [--quick]       (about 10 minutes on 2 cores, 1 GB of disk)

Files like those of ImageNet+ (crop, flip, two operations, erasing; the top 10 of 1,000 classes), written here. The bare
loops read each file, and read and unpickle it with pickle; neither checks anything, nor writes. Each size of the memory
test runs in a process of its own, with files of two views, so that what grows with their number shows.
"""

from __future__ import annotations

import pickle
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _result import Report, parser, ratio, take_turns

from kdkit.importers import import_mldr

CLASSES, TOP, PER_FOLDER = 1000, 10, 1000
AUGMENTATION = {
    "random_resized_crop": {"size": 224},
    "random_horizontal_flip": {"p": 0.5},
    "rand_augment": {"num_ops": 2},
    "random_erase": {"p": 0.25},
}


class Keys:
    """Images of which an import reads only the names."""

    def __init__(self, count: int) -> None:
        self.keys = [f"n{number // PER_FOLDER:08d}/image_{number:08d}.JPEG" for number in range(count)]
        self.class_names = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("an import decodes no image")


def write_files(folder: Path, count: int, num_views: int, start: int = 0) -> Path:
    """A cache of ml-dr: files `start` to `count`, made from 16 different ones."""
    folder.mkdir(exist_ok=True)
    reinforce = {"image_augmentation": AUGMENTATION, "num_samples": num_views, "compress": True, "topk": TOP}
    torch.save({"reinforce": reinforce}, folder / "config.pth.tar")
    draw = np.random.default_rng(0)
    made = [[view(draw) for _ in range(num_views)] for _ in range(16)]
    for index in range(start, count):
        torch.save((index, made[index % 16]), folder / f"{index}.pth.tar", pickle_protocol=4)
    return folder


def view(draw: np.random.Generator) -> dict[str, Any]:
    """The parameters and the label of one view."""
    top, left, height, width = (int(side) for side in draw.integers(0, 200, 4))
    operations = [("Rotate", float(draw.normal())), ("Color", float(draw.normal()))]
    params = [(top, left, height + 8, width + 8), bool(draw.integers(2)), operations, (1, 2, 30, 40)]
    probs = np.sort(draw.dirichlet(np.full(TOP, 0.3)))[::-1] * 0.95
    return {"params": params, "prob": (probs.tolist(), draw.permutation(CLASSES)[:TOP].tolist())}


def read_all(folder: Path, unpickle: bool) -> None:
    """The bare loop."""
    for path in folder.glob("[0-9]*.pth.tar"):
        if unpickle:
            with zipfile.ZipFile(path) as archive:
                pickle.loads(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))
        else:
            path.read_bytes()


def imported(folder: Path, count: int, workers: int) -> int:
    """Imports the files, and returns the bytes of the cache."""
    path = folder.parent / "teacher.h5"
    path.unlink(missing_ok=True)
    return import_mldr(folder, Keys(count), path, num_workers=workers).num_bytes


def memory_of_import(folder: Path, count: int) -> float:
    """By how much, in MB, an import of `count` files raises the peak memory of a process of its own."""
    command = [sys.executable, __file__, "--import-only", str(folder), str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def import_only(folder: str, count: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    imported(Path(folder), int(count), 0)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)


def main() -> None:
    if sys.argv[1:2] == ["--import-only"]:
        import_only(*sys.argv[2:])
        return
    args = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    count, views, turns = (40, 4, 1) if args.quick else (2_000, 40, 2)
    sizes = (100, 200) if args.quick else (25_000, 50_000, 100_000)
    report = Report("imports", "Import of another project's cache", args.quick)
    with tempfile.TemporaryDirectory() as name:
        files = write_files(Path(name) / "files", count, views)
        sides = {
            "read": lambda: read_all(files, False),
            "read and unpickle": lambda: read_all(files, True),
            "import, 1 process": lambda: imported(files, count, 0),
            "import, 2 workers": lambda: imported(files, count, 2),
        }
        times = take_turns(sides, turns, warm_up=0)
        num_bytes = sum(path.stat().st_size for path in files.iterdir())
        rows = []
        for side, seconds in times.items():
            speed = report.figure(f"{side}, files/s", count / float(np.median(seconds)))
            share = report.figure(f"{side}, relative", ratio(times["read and unpickle"], seconds))
            rows.append((side, f"{speed:,.0f}", f"{speed * views:,.0f}", str(share)))
        report.text(f"{count} files of {views} views, {num_bytes / count / 1e3:.0f} kB each.")
        report.table(["what", "files/s", "views/s", "speed relative to reading and unpickling"], rows)
        peaks, written = {}, 0
        for size in sizes:
            many = write_files(Path(name) / "many", size, 2, written)
            written = size
            peaks[size] = report.figure(f"{size} files, MB", memory_of_import(many, size))
        grown = (peaks[sizes[-1]] - peaks[sizes[0]]) / (sizes[-1] - sizes[0]) * 1e6
        report.figure("bytes per file", grown)
        report.table(
            ["files of 2 views", "peak memory of the import, MB"],
            [(f"{size:,}", f"{peak:,.0f}") for size, peak in peaks.items()],
        )
        report.text(
            f"Between the first and the last, memory grows by {grown:,.0f} bytes per file, for its name and its key. "
            "The rest is one range of rows and the shard that is written."
        )
    report.write(args.output)


if __name__ == "__main__":
    main()
