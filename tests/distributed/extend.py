"""Run by run_ranks: all ranks build a cache of one view and extend it to two. Arguments: path, batch size."""

from __future__ import annotations

import dataclasses
import sys

import torch
import torch.distributed as dist
from support import CountingDigits, tiny_model

from kdkit import build_cache, create_teacher, extend_cache
from kdkit.building.config import BuildConfig
from kdkit.data import ReplayedDataset
from kdkit.recipe import ViewRecipe


def main(path: str, batch_size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    recipe = ViewRecipe(size=16, num_views=1, hflip=0.0)
    config = BuildConfig(codec="float32", num_workers=0, batch_size=batch_size, shard_rows=1000, unreadable="skip")
    source = CountingDigits(1797, unreadable=(3, 1200))
    build_cache(create_teacher(tiny_model()), ReplayedDataset(source, recipe), path, config)
    dataset = ReplayedDataset(source, dataclasses.replace(recipe, num_views=2))
    extend_cache(create_teacher(tiny_model()), dataset, path, batch_size=batch_size, num_workers=0)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
