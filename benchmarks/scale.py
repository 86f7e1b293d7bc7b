"""The cost model of docs/scale.md against small runs: bytes, time to open and to match a dataset, memory, build time.

    python benchmarks/scale.py [--quick]       (about 2 minutes on one core, 1 GB of disk)

The model's constants are below; docs/scale.md applies them to large runs. Constants that are times were measured on one
machine: on another machine, compare the growth of the times, not their values.
"""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from _result import Report, parser
from read import write_cache

from kdkit import build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.data import ArraySource, RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher

VIEWS, ROW_BYTES = 2, 96
DIGEST_BYTES, KEY_BYTES = 16, 5  # per key: its digest, and ImageNet-like file names compressed by zlib
CHECKSUM_BYTES, BLOCK_ROWS = 4, 1000  # of every block of rows in every view
HASHED_ALL, HASHED_ONE_IN = 1024, 64  # rows of each view whose pixels have a 4-byte hash
MATCH_BYTES = 57  # per row, in memory, of a matched cache: 8 for its index, the rest retained by Python from hashing


def predicted_bytes(rows: int, views: int, row_bytes: int) -> float:
    """Bytes of a packed cache, without its metadata of some kilobytes."""
    a_view = rows * row_bytes + rows / BLOCK_ROWS * CHECKSUM_BYTES
    a_view += 4 * (min(rows, HASHED_ALL) + max(0, rows - HASHED_ALL) / HASHED_ONE_IN)
    return views * a_view + rows * (DIGEST_BYTES + KEY_BYTES)


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure_cache(rows: int, folder: Path) -> dict[str, float]:
    """A cache of `rows`: its bytes, seconds to open it and to match keys, memory of the match that stays."""
    path = folder / f"{rows}.h5"
    write_cache(path, rows, ROW_BYTES // 2, "float16", VIEWS)
    begun = time.perf_counter()
    cache = open_cache(path)
    opened = time.perf_counter() - begun
    keys = cache.keys()
    before, begun = anonymous_bytes(), time.perf_counter()
    matched = cache.match_keys(keys)
    seconds = time.perf_counter() - begun
    kept = anonymous_bytes() - before
    assert len(matched) == rows
    return {"bytes": path.stat().st_size, "open": opened, "match": seconds, "kept": kept}


def open_seconds(rows: int, views: int, folder: Path) -> float:
    """Seconds to open a cache of many views, the least of five."""
    path = folder / f"{views}-views.h5"
    write_cache(path, rows, ROW_BYTES // 2, "float16", views)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        open_cache(path)
        times.append(time.perf_counter() - begun)
    return min(times)


def bare_seconds(teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig) -> float:
    """Seconds to load images, run the teacher and discard its outputs."""
    sampler = RangeSampler([(0, 0, len(dataset))], config.batch_size)
    loader = ReplayLoader(dataset, sampler, teacher.input_normalization)
    begun = time.perf_counter()
    for batch in loader:
        teacher(batch)
    return time.perf_counter() - begun


def measure_build(images: int, views: int, folder: Path) -> tuple[float, float]:
    """Seconds of a build of images x views, and the prediction from a bare loop over one view."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, 64, 64, 3), dtype=np.uint8)
    dataset = ReplayedDataset(ArraySource(pixels, np.zeros(images, dtype=int)), ViewRecipe(size=64, num_views=views))
    teacher = create_teacher(timm.create_model("resnet18", num_classes=1000))
    config = BuildConfig(codec="int8", batch_size=64, num_workers=0)
    bare_seconds(teacher, dataset, config)
    predicted = bare_seconds(teacher, dataset, config) * views
    # a codec that is not fitted is measured on at most 512 further rows
    predicted *= 1 + min(512, images) / (images * views)
    return build_cache(teacher, dataset, folder / "build.h5", config).seconds, predicted


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    sizes = (5_000, 20_000) if args.quick else (20_000, 200_000, 1_000_000)
    report = Report("scale", "The cost model against small runs", args.quick)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure_cache(1_000, folder)  # warms up
        for size in sizes:
            found, predicted = measure_cache(size, folder), predicted_bytes(size, VIEWS, ROW_BYTES)
            report.figure(f"{size} rows", found | {"predicted bytes": predicted})
            rows.append(
                (
                    f"{size:,}",
                    f"{found['bytes'] / 1e6:.2f} / {predicted / 1e6:.2f} ({found['bytes'] / predicted:.3f})",
                    f"{1e3 * found['open']:.1f}",
                    f"{1e6 * found['match'] / size:.2f}",
                    f"{found['kept'] / size:.1f} / {MATCH_BYTES}",
                )
            )
        opened = {views: open_seconds(1000, views, folder) for views in ((10, 30) if args.quick else (10, 100, 300))}
        images, views = (128, 2) if args.quick else (1024, 4)
        built, expected = measure_build(images, views, folder)
    report.text(f"Caches of {VIEWS} views x {ROW_BYTES} bytes, keys like ImageNet's. Pairs are measured / predicted.")
    header = ["rows", "MB", "open, ms", "match, µs per row", "bytes per row that a match adds to the process"]
    report.table(header, rows)
    report.figure("open, seconds by views", opened)
    report.text("Opening 1,000 rows: " + ", ".join(f"{n} views {1e3 * t:.1f} ms" for n, t in opened.items()) + ".")
    report.figure("build over prediction", built / expected)
    report.text(
        f"""A build of {images:,} images x {views} views (resnet18, 64 px, int8): {built:.1f} s; images x views over the
        speed of a bare loop of load and forward predicts {expected:.1f} s ({built / expected:.2f})."""
    )
    report.write(args.output)


if __name__ == "__main__":
    main()
