"""Fault 1: a build is killed at a random moment, 60 times, and goes on each time."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch
from support import cache_contents, digits

from kdkit import build_cache, open_cache
from kdkit.cache.parts import Parts
from kdkit.config import BuildConfig, ReplayRecipe
from kdkit.data import ReplayedDataset
from kdkit.errors import CacheIncompleteError, CacheNotFoundError
from kdkit.teachers import Teacher

SEEDS = 60


class _MeanColours(torch.nn.Module):
    """A teacher that costs nothing, so that the kill often meets the writing."""

    num_classes = 10

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :10]


def build(path: Path) -> None:
    torch.set_num_threads(1)
    dataset = ReplayedDataset(digits(60), ReplayRecipe(size=8, num_views=8, hflip=0.0))
    config = BuildConfig(codec="float32", num_workers=0, batch_size=32, shard_rows=1000)
    build_cache(Teacher(_MeanColours()), dataset, path, config)


def start(path: Path) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support", "kdkit.engine.build"])
    process = context.Process(target=build, args=(path,))
    process.start()
    return process


def check_what_is_there(path: Path) -> str:
    """Invariant I on what the kill left; returns in what state that was."""
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
    if sealed != list(parts.metadata.shards()):
        with pytest.raises(CacheIncompleteError, match="are missing"):
            open_cache(path)
    return f"{len(sealed)} sealed"


@pytest.mark.slow
def test_fault_01_a_build_killed_at_60_random_moments_resumes_and_equals_an_undisturbed_one(tmp_path: Path) -> None:
    plain = tmp_path / "plain.h5"
    for _ in range(2):  # the first starts the fork server, and is not timed
        plain.unlink(missing_ok=True)
        begun = time.monotonic()
        process = start(plain)
        process.join()
        assert process.exitcode == 0
    duration, expected = time.monotonic() - begun, cache_contents(plain)
    states = []
    for seed in range(SEEDS):
        path = tmp_path / f"{seed}.h5"
        process = start(path)
        time.sleep(random.Random(seed).uniform(0.1, 1.05) * duration)
        process.kill()  # SIGKILL; nothing if it has just ended
        process.join()
        states.append(check_what_is_there(path))
        build(path)
        assert cache_contents(path) == expected, f"seed {seed}, killed with {states[-1]}"
        assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["plain.h5", path.name])
        path.unlink()
    assert len(set(states)) >= 4, states  # the moments differed
