"""Replaced images: how many of 300 single replacements are found, where, and what the check costs.

    python benchmarks/replaced.py [--quick]

Needs about 400 MB of disk in the temporary folder; takes about four minutes on a calm core. Times of 20,000 files are
extrapolated to ImageNet's 1,281,167 files of 110 kB; the files are in the page cache, so a disk or a network file
system adds its own time.
"""

from __future__ import annotations

import io
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from _result import Report, Spread, parser
from PIL import Image
from torch import nn

from kdkit import build_cache, open_cache, open_dataset, verify_cache
from kdkit.building.config import BuildConfig
from kdkit.cache.content import SAMPLED, SUSPECTS
from kdkit.cache.format.content import content_record
from kdkit.data import FolderSource
from kdkit.data.sources.content import SampleContent
from kdkit.errors import CacheMismatchError
from kdkit.recipe import ViewRecipe
from kdkit.runtime.pixels import is_hashed
from kdkit.teachers import Teacher

IMAGENET, IMAGE_BYTES = 1_281_167, 110_000
FILE_BYTES = 16_000  # of the files whose time is measured
RECIPE = ViewRecipe(size=8, num_views=2)


class Pixels(nn.Module):
    """A teacher's model without cost."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :10].clone()

    num_classes = 10


def image(seed: int, side: int = 8) -> bytes:
    """A BMP of noise; all of one side have the same size."""
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "BMP")
    return stream.getvalue()


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """The file holds other content within the context, and its own with its own time afterwards."""
    own, status = path.read_bytes(), path.stat()
    path.write_bytes(content)
    yield
    path.write_bytes(own)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def is_refused(action: object, *arguments: object, **options: object) -> bool:
    """Whether this raises CacheMismatchError."""
    try:
        action(*arguments, **options)  # type: ignore[operator]
    except CacheMismatchError:
        return True
    return False


def find_replacements(report: Report, root: Path, num_images: int, each: int) -> None:
    """Replaces one image at a time, and opens the cache and verifies it against the data."""
    data = root / "images"
    data.mkdir()
    for row in range(num_images):
        (data / f"{row:06d}.bmp").write_bytes(image(row))
    fresh, old = root / "fresh.h5", root / "old.h5"
    time.sleep(1.1)  # a file system may count whole seconds
    for path in (fresh, old):
        dataset = open_dataset(data, recipe=RECIPE)
        build_cache(Teacher(Pixels()), dataset, path, BuildConfig(codec="float16", num_workers=0))
        if path == fresh:
            time.sleep(1.1)
            for file in data.iterdir():  # a copy of the data, made after the cache `fresh`
                file.write_bytes(file.read_bytes())
            time.sleep(1.1)
    fresh, old = old, fresh  # `old` is older than every file, `fresh` than none
    draw, rows = random.Random(0), []
    for hashed in (True, False):
        candidates = [row for row in range(num_images) if is_hashed(row) == hashed]
        for side, what in ((8, "same size, other pixels"), (9, "other size")):
            found = [try_one(data, draw.choice(candidates), side, fresh, old) for _ in range(each)]
            counts = [sum(column) for column in zip(*found, strict=True)]
            where = "hashed row" if hashed else "row without hash"
            report.figure(
                f"{where}, {what}", {"of": each, **dict(zip(("fresh", "copied", "verify"), counts, strict=True))}
            )
            rows.append([where, what, each, *counts])
    report.table(
        ["row", "replaced by", "tried", "opening, data in place", "opening, data copied later", "verify"], rows
    )


def try_one(data: Path, row: int, side: int, fresh: Path, old: Path) -> tuple[bool, bool, bool]:
    """Whether one replacement is found by an opening of `fresh`, by one of `old`, and by verifying `old`."""
    with replaced(data / f"{row:06d}.bmp", image(10**6 + row, side)):
        dataset = open_dataset(data, recipe=RECIPE)
        at_once, copied = is_refused(open_cache, fresh, dataset), is_refused(open_cache, old, dataset)
        return at_once, copied, is_refused(verify_cache, old, dataset=dataset)


def measure_cost(report: Report, root: Path, num_files: int, turns: int) -> None:
    """Times one stat per file, and reading and hashing each file; extrapolates both."""
    data, content = root / "files", os.urandom(FILE_BYTES)
    for row in range(num_files):
        place = data / f"{row % 100:03d}" / f"{row:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(row.to_bytes(8, "little") + content)
    samples, large = SampleContent(FolderSource(data)), os.urandom(IMAGE_BYTES)
    stats, reads, hashes = [], [], []
    for _ in range(turns):
        begun = time.perf_counter()
        samples.stat()
        stats.append((time.perf_counter() - begun) / num_files)
        begun = time.perf_counter()
        for row in range(num_files):
            samples.read(row)
        reads.append((time.perf_counter() - begun) / num_files)
        begun = time.perf_counter()
        for _ in range(500):
            content_record(large)
        hashes.append((time.perf_counter() - begun) / 500)
    stat, read, hashing = (Spread.of([1e6 * value for value in times]) for times in (stats, reads, hashes))
    for name, value in (("stat", stat), ("read", read), ("hash", hashing)):
        report.figure(f"{name}, microseconds per file", value)
    opening = IMAGENET * stat.median / 1e6
    whole = IMAGENET * (read.median + hashing.median) / 1e6
    report.figure("opening, seconds at 1,281,167 files", opening)
    report.figure("all files, seconds of one core at 1,281,167 files", whole)
    sampled = SAMPLED * (read.median + hashing.median) / 1e6
    most = (SAMPLED + SUSPECTS) * (read.median + hashing.median) / 1e6
    report.table(
        ["what", "measured per file, µs", "at 1,281,167 files"],
        [
            ["one stat, 16 threads", stat, f"{opening:.1f} s, at each opening"],
            [f"read {FILE_BYTES // 1000} kB and hash {IMAGE_BYTES // 1000} kB", f"{read} and {hashing}",
             f"{whole:.0f} s of one core, at a build and at verify; workers share it"],
            ["the same of the files that an opening reads", "", f"{sampled:.2f} s, at most {most:.2f} s"],
        ],
    )  # fmt: skip


def main() -> None:
    options = parser(__doc__).parse_args()
    report = Report("replaced", "Replaced images: how many are found, and what it costs", options.quick)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        find_replacements(report, Path(folder), 1200 if options.quick else 3000, 3 if options.quick else 75)
        measure_cost(report, Path(folder), 500 if options.quick else 20_000, 3 if options.quick else 7)
    report.write(options.output)


if __name__ == "__main__":
    main()
