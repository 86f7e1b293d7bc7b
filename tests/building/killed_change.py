"""Extends or prunes a cache of digits, in a process that a test kills: killed_change.py extend|prune PATH ROWS."""

from __future__ import annotations

import dataclasses
import sys

from support import Pixels, digits

from kdkit import ViewRecipe, extend_cache
from kdkit.building.merge import prune_cache
from kdkit.data import ReplayedDataset
from kdkit.data.sources.selection import SelectedSource
from kdkit.teachers import Teacher

if __name__ == "__main__":
    change, path, rows = sys.argv[1:]
    recipe = dataclasses.replace(ViewRecipe(size=8, hflip=0.0), num_views=2)
    dataset = ReplayedDataset(SelectedSource(digits(400), list(range(int(rows)))), recipe)
    print("begun", flush=True)
    if change == "extend":
        extend_cache(Teacher(Pixels()), dataset, path, batch_size=10, num_workers=0)
    else:
        prune_cache(path, dataset)
