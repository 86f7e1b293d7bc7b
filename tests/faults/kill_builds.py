"""Run by test_fault_01: forks builds, or extensions, kills each at a random moment, looks at what is left, goes on.

Prints a line a seed: in what state the kill left the cache. Ends with an error if an invariant does not hold. A process
of its own, since forking wants one without threads.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from support import Pixels, cache_contents, digits

from kdkit import CacheWriter, build_cache, extend_cache, open_cache
from kdkit.building.config import BuildConfig
from kdkit.data import ReplayedDataset
from kdkit.errors import CacheIncompleteError, CacheNotFoundError
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher

VIEWS, OLD_VIEWS = 8, 2


def dataset(views: int) -> ReplayedDataset:
    return ReplayedDataset(digits(60), ViewRecipe(size=8, num_views=views, hflip=0.0))


def build(path: Path, views: int = VIEWS) -> None:
    config = BuildConfig(codec="float32", num_workers=0, batch_size=32, shard_rows=1000)
    build_cache(Teacher(Pixels()), dataset(views), path, config)


def extend(path: Path) -> None:
    extend_cache(Teacher(Pixels()), dataset(VIEWS), path, num_workers=0, batch_size=32)


def fork(work: Callable[[Path], None], path: Path) -> int:
    process = os.fork()
    if process == 0:
        work(path)
        os._exit(0)
    return process


def kill(work: Callable[[Path], None], path: Path, seed: int, within: float) -> None:
    """Begins the work and kills it at a random moment."""
    process = fork(work, path)
    time.sleep(random.Random(seed).uniform(0.0, 1.1) * within)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def duration(work: Callable[[Path], None], paths: list[Path]) -> float:
    """Median seconds of undisturbed work."""
    durations = []
    for path in paths:
        begun = time.monotonic()
        os.waitpid(fork(work, path), 0)
        durations.append(time.monotonic() - begun)
    return statistics.median(durations)


def state(path: Path) -> str:
    """Checks invariant I on the remains of a killed build, and returns their state."""
    if path.exists():
        open_cache(path).verify()
        return "packed"
    try:
        writer = CacheWriter.join(path)
    except CacheNotFoundError:
        return "not begun"
    sealed = writer.sealed()
    for shard in sealed:
        writer.read(shard)
    try:
        open_cache(path).verify()
        complete = True
    except CacheIncompleteError:
        complete = False
    assert complete == (len(sealed) == 8)
    return f"{len(sealed)} sealed"


def extended_state(path: Path) -> str:
    """The cache is finished whenever the kill came: with the old views or with all."""
    cache = open_cache(path)
    cache.verify()
    assert cache.num_views in (OLD_VIEWS, VIEWS)
    sealed = len(list(path.with_name(path.name + ".parts").glob("v*.json")))
    return f"{cache.num_views} views, {sealed} sealed"


def main(folder: Path, what: str, seeds: int) -> None:
    torch.set_num_threads(1)
    build(folder / "plain.h5")
    build(folder / "old.h5", OLD_VIEWS)
    expected = cache_contents(folder / "plain.h5")
    work, look = (build, state) if what == "build" else (extend, extended_state)
    paths = [folder / f"{number}.h5" for number in range(seeds + 5)]
    if what == "extend":
        for path in paths:
            shutil.copy(folder / "old.h5", path)
    within = duration(work, paths[seeds:])
    for seed, path in enumerate(paths[:seeds]):
        kill(work, path, seed, within)
        left = look(path)
        work(path)
        assert cache_contents(path) == expected, f"seed {seed}, killed with {left}"
        assert not list(folder.glob(f".{path.name}*"))
        assert not path.with_name(path.name + ".parts").exists()
        print(left, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
