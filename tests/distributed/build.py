"""Run by run_ranks: builds a cache with all ranks.

Arguments: path, batch size, rows after which to die (0: never); a rank dies once a shard more is sealed than at first.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from support import CountingDigits, tiny_model

import kdkit.building.shards as engine
from kdkit import build_cache, create_teacher
from kdkit.building.config import BuildConfig
from kdkit.data import ReplayedDataset
from kdkit.recipe import ViewRecipe


def main(path: str, batch_size: int, die_after: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run_teacher, num_images, at_first = engine.run_teacher, 0, num_sealed(path)

    def counting(teacher, loader, pixels, streams):  # type: ignore[no-untyped-def]
        nonlocal num_images
        num_images += len(pixels.row)
        if die_after and num_images > die_after:
            deadline = time.monotonic() + 60
            while num_sealed(path) == at_first and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return run_teacher(teacher, loader, pixels, streams)

    engine.run_teacher = counting
    source = CountingDigits(1797, unreadable=(3, 1200))  # of the shares of both ranks
    dataset = ReplayedDataset(source, ViewRecipe(size=16, num_views=2, hflip=0.0))
    config = BuildConfig(
        codec="float32", num_workers=0, batch_size=batch_size, shard_rows=1000, unreadable="skip", memory=1
    )
    build_cache(create_teacher(tiny_model()), dataset, path, config)
    dist.destroy_process_group()


def num_sealed(path: str) -> int:
    """Shards that are sealed."""
    return len(list(Path(path + ".parts").glob("v*.json")))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
