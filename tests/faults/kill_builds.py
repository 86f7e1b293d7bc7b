"""Run by test_fault_01: forks builds, kills each at a random moment, looks at what is left, and goes on with it.

Prints a line a seed: in what state the kill left the cache. Ends with an error if an invariant does not hold. A process
of its own, since forking wants one without threads.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import time
from pathlib import Path

import torch
from support import cache_contents, digits

from kdkit import build_cache, open_cache
from kdkit.cache.parts import Parts
from kdkit.config import BuildConfig, ReplayRecipe
from kdkit.data import ReplayedDataset
from kdkit.errors import CacheIncompleteError, CacheNotFoundError
from kdkit.teachers import Teacher


class _Pixels(torch.nn.Module):
    """A teacher that costs nothing, so that the kill often meets the writing."""

    num_classes = 10

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :10]


def build(path: Path) -> None:
    dataset = ReplayedDataset(digits(60), ReplayRecipe(size=8, num_views=8, hflip=0.0))
    config = BuildConfig(codec="float32", num_workers=0, batch_size=32, shard_rows=1000)
    build_cache(Teacher(_Pixels()), dataset, path, config)


def fork_build(path: Path) -> int:
    process = os.fork()
    if process == 0:
        build(path)
        os._exit(0)
    return process


def state(path: Path) -> str:
    """Invariant I on what the kill left; says in what state that was."""
    if path.exists():
        open_cache(path).verify()
        return "packed"
    try:
        parts = Parts.open(path.with_name(path.name + ".parts"))
    except CacheNotFoundError:
        return "not begun"
    sealed = [shard for shard in parts.metadata.shards() if parts.is_sealed(shard)]
    for shard in sealed:
        parts.verify(shard)
    try:
        open_cache(path).verify()
        complete = True
    except CacheIncompleteError:
        complete = False
    assert complete == (len(sealed) == 8)
    return f"{len(sealed)} sealed"


def main(folder: Path, seeds: int) -> None:
    torch.set_num_threads(1)
    plain = folder / "plain.h5"
    build(plain)
    expected, durations = cache_contents(plain), []
    for number in range(5):
        begun = time.monotonic()
        os.waitpid(fork_build(folder / f"timed{number}.h5"), 0)
        durations.append(time.monotonic() - begun)
    for seed in range(seeds):
        path = folder / f"{seed}.h5"
        process = fork_build(path)
        time.sleep(random.Random(seed).uniform(0.0, 1.1) * statistics.median(durations))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        left = state(path)
        build(path)
        assert cache_contents(path) == expected, f"seed {seed}, killed with {left}"
        assert not list(folder.glob(f".{path.name}*"))
        assert not path.with_name(path.name + ".parts").exists()
        print(left, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
