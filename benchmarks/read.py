"""Reading a cache: rows per second compared with six other formats, bytes on disk, time to open, memory.

    python benchmarks/read.py [--quick]

Needs about 5 GB of disk in the temporary folder; takes about two minutes on 2 cores. The ways take turns, batch by
batch, in one process, the fastest in seven, one after the other; figures are medians of the turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import timm
import torch
from _result import Report, parser, ratio, take_turns
from _ways import (
    MEMMAP,
    Way,
    disk_bytes,
    h5py_chunked,
    h5py_contiguous,
    numpy_in_memory,
    numpy_memmap,
    pt_files,
    seek_and_read,
)

from kdkit import CacheSpec, CacheWriter
from kdkit.cache import open_cache
from kdkit.cache.codecs import create_codec
from kdkit.cache.format.constants import BLOCK_ROWS
from kdkit.teachers import create_teacher

BATCH = 256
PT_SHARE = 10  # of the rows one in so many is kept as a .pt file
PEERS = {
    "numpy fancy indexing in memory": numpy_in_memory,
    "numpy memmap": numpy_memmap,
    "seek and read a record (TinyViT)": seek_and_read,
    "h5py fancy indexing, contiguous": h5py_contiguous,
    "h5py fancy indexing, chunked": h5py_chunked,
}
OWN = "kdkit cache.read"
FAST = [OWN, "numpy fancy indexing in memory", "numpy memmap"]  # these have turns of their own
SLOW_OWN = "kdkit cache.read beside the slow ones"
PROCESSES = 7
CACHE = "int8.h5"


def write_cache(path: Path, num_rows: int, num_classes: int, codec_name: str, num_views: int) -> None:
    """A packed cache of random bytes, written as a build writes."""
    codec = create_codec(codec_name, num_classes)
    keys = [f"n{row % 1000:08d}/image_{row:08d}.JPEG" for row in range(num_rows)]
    spec = CacheSpec(
        keys=keys,
        num_views=num_views,
        codecs={"logits": codec},
        teacher=create_teacher(timm.create_model("test_resnet", num_classes=num_classes)).fingerprint(),
        shard_rows=100_000,
    )
    random = np.random.default_rng(0)
    with CacheWriter.create(path, spec) as writer:
        for shard in writer.missing():
            payload = random.integers(0, 256, (shard.num_rows, codec.row_bytes), dtype=np.uint8)
            writer.seal(shard, {"logits": payload})
        writer.finish()


def compare_reading(report: Report, folder: Path, num_rows: int, turns: int) -> None:
    """Compares kdkit with the other formats on the same rows of random bytes: int8 rows of 1,000 classes."""
    path = folder / CACHE
    write_cache(path, num_rows, 1000, "int8", 1)
    cache = open_cache(path)
    rows = cache.read_encoded(np.arange(num_rows), 0).numpy()
    ways = {OWN: kdkit_read(path)}
    ways |= {name: make(rows, folder) for name, make in PEERS.items()}
    ways["one .pt file an image"] = pt_files(rows[: num_rows // PT_SHARE], folder)  # as many as a batch is drawn from
    check_equal(ways, rows)
    slow = {name: way for name, way in ways.items() if name not in FAST[1:]}
    times = {**gather_in_processes(folder, turns), **gather_in_turns(slow, turns // 10, SLOW_OWN)}
    report.table(
        ["way", "rows/s", "kdkit is faster by (quartiles)", "bytes per row on disk"],
        [describe(report, name, times, ways[name]) for name in ways],
    )


def kdkit_read(path: Path) -> Way:
    """Checksums are compared once a block, and have been: the steady state is measured."""
    cache = open_cache(path)
    cache.verify()
    return Way(lambda chosen: cache.read_encoded(chosen, 0), disk_bytes(path), cache.num_rows)


def gather_in_processes(folder: Path, turns: int) -> dict[str, list[float]]:
    """The fast ways' seconds, in turns within each of several processes, one after the other.

    Where a process's memory lies moves these ratios by five in a hundred, for as long as the process lives.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        parts = list(pool.map(gather_fast, [folder] * PROCESSES, [turns] * PROCESSES))
    return {name: [seconds for part in parts for seconds in part[name]] for name in FAST}


def gather_fast(folder: Path, turns: int) -> dict[str, list[float]]:
    """The fast ways' seconds in this process."""
    torch.set_num_threads(1)
    rows = np.load(folder / MEMMAP)
    memory, mapped = numpy_in_memory(rows, folder), numpy_memmap(rows, folder)
    return gather_in_turns(dict(zip(FAST, (kdkit_read(folder / CACHE), memory, mapped), strict=True)), turns)


def check_equal(ways: dict[str, Way], rows: np.ndarray) -> None:
    """Every way must give the same bytes."""
    for name, way in ways.items():
        chosen = np.random.default_rng(2).integers(0, way.num_rows, BATCH)
        if not np.array_equal(way.gather(chosen), rows[chosen]):
            raise RuntimeError(f"{name} gives other bytes than kdkit")


def gather_in_turns(ways: dict[str, Way], turns: int, own: str = OWN) -> dict[str, list[float]]:
    """Seconds for one random batch each turn; `own` is the name of kdkit's times."""
    warm_up = 5
    sides = {}
    for name, way in ways.items():
        drawn = iter(np.random.default_rng(1).integers(0, way.num_rows, (turns + warm_up, BATCH)))  # not while timed
        sides[own if name == OWN else name] = lambda way=way, drawn=drawn: way.gather(next(drawn))
    return take_turns(sides, turns, warm_up)


def describe(report: Report, name: str, times: dict[str, list[float]], way: Way) -> list[object]:
    """A line of the table; its figures are added to the report."""
    speed = BATCH / statistics.median(times[name])
    report.figure(f"{name}: rows/s", round(speed))
    on_disk = way.num_bytes / way.num_rows
    report.figure(f"{name}: bytes a row", round(on_disk))
    if name == OWN:
        return [name, f"{speed:,.0f}", "1", f"{on_disk:,.0f}"]
    own = times[OWN if name in FAST else SLOW_OWN]
    faster = report.figure(f"{name} / kdkit, time", ratio(times[name], own))
    return [name, f"{speed:,.0f}", faster, f"{on_disk:,.0f}" if on_disk else "in memory"]


OPEN = """
import sys, time, resource
from kdkit import CacheSpec, CacheWriter
from kdkit.cache import open_cache
import numpy as np
times = []
for _ in range(11):
    begun = time.perf_counter()
    cache = open_cache(sys.argv[1])
    times.append(time.perf_counter() - begun)
def resident():
    with open('/proc/self/status') as file:
        fields = dict(line.split(':', 1) for line in file)
    return int(fields['RssAnon'].split()[0]), int(fields['RssFile'].split()[0])
before = resident()
random = np.random.default_rng(0)
for _ in range(1000):
    cache.read_encoded(random.integers(0, int(sys.argv[2]), 256), int(random.integers(cache.num_views)))
after = resident()
print(times[0], sorted(times)[5], after[0] - before[0], after[1] - before[1])
"""


def measure_opening(report: Report, folder: Path, num_rows: int) -> None:
    """Opening many rows of 96 bytes in 10 views, and memory after 1,000 random batches of a tenth of them."""
    path = folder / "large.h5"
    write_cache(path, num_rows, 48, "float16", 10)
    drawn_from = num_rows // 10 // BLOCK_ROWS * BLOCK_ROWS  # whole blocks: a block is read to compare its checksum
    command = [sys.executable, "-c", OPEN, str(path), str(drawn_from)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    first, median, anonymous, mapped = (float(value) for value in run.stdout.split())
    report.figure("open: rows", num_rows)
    first = report.figure("open: first, ms", round(first * 1e3, 1))
    median = report.figure("open: median, ms", round(median * 1e3, 1))
    anonymous = report.figure("1,000 batches: anonymous memory, MiB", round(anonymous / 1024, 1))
    touched = drawn_from * 10 * 96 / 1024
    over = report.figure("1,000 batches: pages of the file over touched ones", round(mapped / touched, 3))
    report.text(
        f"""Packed cache of {num_rows:,} rows x 10 views of 96 bytes ({path.stat().st_size / 1e9:.2f} GB):

        - open_cache: first {first} ms, median of 11 {median} ms, imports excluded
        - after 1,000 random batches of 256 of the first {drawn_from:,} rows: anonymous memory grew by {anonymous} MiB,
          pages of the mapped file by {mapped / 1024:,.1f} MiB, {over} of those rows' bytes (they belong to the page
          cache and are released under memory pressure)"""
    )


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    report = Report("read", "Reading a cache", args.quick)
    num_rows, turns, large = (5_000, 100, 50_000) if args.quick else (200_000, 400, 1_281_167)
    report.text(
        f"""{BATCH} random rows per batch, int8 rows of 1,000 classes (1,004 bytes), {num_rows:,} rows
        ({num_rows // PT_SHARE:,} as .pt files), all in the page cache; one thread; the ways take turns in one
        process. The first three: {turns} turns in each of {PROCESSES} processes; the others and kdkit:
        {turns // 10} turns. A ratio is of the two times of a turn."""
    )
    with tempfile.TemporaryDirectory() as folder:
        compare_reading(report, Path(folder), num_rows, turns)
        measure_opening(report, Path(folder), large)
    report.write(args.output)


if __name__ == "__main__":
    main()
