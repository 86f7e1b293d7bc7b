"""Reading a cache: rows a second beside numpy in memory and h5py, time to open, memory.

    python benchmarks/read.py

Writes benchmarks/results/DATE-read.md. Needs about 4 GB of disk in the temporary folder; takes a minute on 2 cores.
The sides of a comparison take turns, batch by batch, on the same rows in one process; figures are medians of the turns.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import timm
import torch

from kdkit.cache import open_cache
from kdkit.cache.codecs import create_codec
from kdkit.cache.format import DIGEST_NAME, KEYS_NAME, hashed_rows
from kdkit.cache.keys import key_digests, keys_sha256, pack_keys
from kdkit.cache.metadata import CacheMetadata
from kdkit.cache.pack import pack
from kdkit.cache.parts import Parts
from kdkit.config import ReplayRecipe
from kdkit.teachers import create_teacher

BATCH = 256
TURNS = 200


def write_cache(path: Path, num_rows: int, num_classes: int, codec_name: str, num_views: int) -> None:
    """A packed cache of random bytes, written by the parts that a build uses."""
    codec = create_codec(codec_name, num_classes)
    keys = [f"n{row % 1000:08d}/image_{row:08d}.JPEG" for row in range(num_rows)]
    metadata = CacheMetadata(
        num_rows=num_rows,
        num_views=num_views,
        shard_rows=100_000,
        streams={"logits": {"codec": codec.to_dict(), "row_bytes": codec.row_bytes}},
        teacher=create_teacher(timm.create_model("test_resnet", num_classes=num_classes)).fingerprint(),
        recipe=ReplayRecipe(num_views=num_views).to_dict(),
        dataset={"keys_sha256": keys_sha256(keys), "class_names": None},
        fidelity={},
    )
    folder = path.with_name(path.name + ".parts")
    parts = Parts.create(folder, metadata, {DIGEST_NAME: key_digests(keys), KEYS_NAME: pack_keys(keys)})
    random = np.random.default_rng(0)
    for shard in metadata.shards():
        payload = random.integers(0, 256, (shard.num_rows, codec.row_bytes), dtype=np.uint8)
        pixels = np.zeros(len(hashed_rows(shard.start, shard.stop)), dtype="<u4")
        parts.seal(shard, {"logits": payload}, pixels)
    pack(parts, path)


def median_times(sides: dict[str, Callable[[np.ndarray], object]], num_rows: int, turns: int) -> dict[str, list[float]]:
    """Seconds of each side for the same random rows, the sides taking turns and the first going last next time."""
    random = np.random.default_rng(1)
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for turn in range(turns + 5):
        rows = random.integers(0, num_rows, BATCH)
        order.append(order.pop(0))
        for name in order:
            begun = time.perf_counter()
            sides[name](rows)
            if turn >= 5:  # the first turns warm up
                times[name].append(time.perf_counter() - begun)
    return times


def compare_reading(folder: Path) -> list[str]:
    """kdkit beside numpy in memory and h5py, int8 rows of 1,000 classes, 200,000 rows."""
    path, num_rows = folder / "int8.h5", 200_000
    write_cache(path, num_rows, 1000, "int8", 1)
    cache = open_cache(path)
    with h5py.File(path, "r", locking=False) as file:
        dataset = file["views/0000/logits"]
        in_memory = dataset[()]
        cache.verify()  # checksums are compared once a block; the steady state is measured
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def read_h5py(rows: np.ndarray) -> object:
            unique, back = np.unique(rows, return_inverse=True)  # h5py wants increasing rows without repeats
            return dataset[unique][back]

        times = median_times(
            {"kdkit": lambda rows: cache.read(rows, 0), "numpy": lambda rows: in_memory[rows]}, num_rows, TURNS
        )
        slow = median_times({"kdkit": lambda rows: cache.read(rows, 0), "h5py": read_h5py}, num_rows, TURNS // 5)
        unchanged = np.array_equal(cache.read(np.arange(BATCH), 0).numpy(), in_memory[:BATCH])
    assert unchanged
    lines = ["| side | rows/s | kdkit / side | spread of the ratio (quartiles) |", "|---|---|---|---|"]
    for measured, name in ((times, "numpy"), (slow, "h5py")):
        ratios = [theirs / mine for mine, theirs in zip(measured["kdkit"], measured[name], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        speed = BATCH / statistics.median(measured[name])
        label = "numpy fancy indexing in memory" if name == "numpy" else "h5py fancy indexing, contiguous"
        lines.append(f"| {label} | {speed:,.0f} | {statistics.median(ratios):.2f} | {low:.2f} to {high:.2f} |")
    lines.insert(2, f"| kdkit cache.read | {BATCH / statistics.median(times['kdkit']):,.0f} | 1 | |")
    return [*lines, "", f"(peak memory of that process: {resident / 1024:,.0f} MiB, the copy in memory included)"]


OPEN = """
import sys, time, resource
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
    cache.read(random.integers(0, cache.num_rows, 256), int(random.integers(cache.num_views)))
after = resident()
print(times[0], sorted(times)[5], after[0] - before[0], after[1] - before[1])
"""


def measure_opening(folder: Path) -> list[str]:
    """Opening 1.28 million rows of 96 bytes in 10 views, and what 1,000 random batches do to the memory."""
    path = folder / "large.h5"
    write_cache(path, 1_281_167, 48, "float16", 10)
    command = [sys.executable, "-c", OPEN, str(path)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    first, median, anonymous, mapped = (float(value) for value in run.stdout.split())
    return [
        f"Packed cache of 1,281,167 rows x 10 views of 96 bytes ({path.stat().st_size / 1e9:.2f} GB):",
        "",
        f"- open_cache: first {first * 1e3:.1f} ms, median of 11 {median * 1e3:.1f} ms, imports excluded",
        f"- after 1,000 random batches of 256 rows: anonymous memory grew by {anonymous / 1024:.1f} MiB, pages of the "
        f"mapped file by {mapped / 1024:,.1f} MiB (they are the page cache's, and given back under pressure)",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        reading, opening = compare_reading(Path(name)), measure_opening(Path(name))
    date = datetime.date.today().isoformat()
    versions = f"Python {platform.python_version()}, numpy {np.__version__}, h5py {h5py.__version__}"
    page = [
        f"# Reading a cache, {date}",
        "",
        f"Command: `python benchmarks/read.py`. Machine: {os.cpu_count()}-core {platform.machine()} CPU. {versions}.",
        "",
        f"{BATCH} random rows a batch, int8, 1,000 classes (1,004 bytes a row), 200,000 rows; one thread; the sides",
        f"take turns in one process, {TURNS} turns ({TURNS // 5} with h5py); ratios are of the two times of a turn.",
        "",
        *reading,
        "",
        *opening,
        "",
    ]
    arguments.output.mkdir(exist_ok=True)
    (arguments.output / f"{date}-read.md").write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
