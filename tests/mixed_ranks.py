"""Run by run_ranks: mixed views as two ranks build from them and as they train on them; rank 0 saves what was seen."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
import torch.distributed as dist
from support import RECIPE, CountingDigits, digits

from kdkit.data import EpochSampler, RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.types import Normalization

MIXED = dataclasses.replace(RECIPE, mixup_alpha=0.8, cutmix_alpha=1.0)
BATCH_SIZES = (2, 8, 30)
COUNTS = (60, 61)


def gathered(mine: Any) -> list[Any]:
    """What each rank has."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def taught(count: int, view: int) -> dict[int, torch.Tensor]:
    """The teacher's input for each row, by the rank whose range contains the row."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    bounds = [count * part // world_size for part in range(world_size + 1)]
    dataset = ReplayedDataset(digits(count), MIXED)
    loader = ReplayLoader(dataset, RangeSampler([(view, bounds[rank], bounds[rank + 1])], 7), Normalization())
    mine = {int(row): image for batch in loader for row, image in zip(batch.row, batch.input, strict=True)}
    return {row: image for part in gathered(mine) for row, image in part.items()}


def epoch(count: int, batch_size: int, view: int) -> dict[str, Any]:
    """What all ranks showed and decoded in an epoch, and which rows were not, to the bit, what the teacher saw."""
    source, teacher = CountingDigits(count), taught(count, view)
    sampler = EpochSampler(
        range(count), batch_size, num_views=2, seed=1, rank=dist.get_rank(), world_size=dist.get_world_size()
    )
    loader = ReplayLoader(ReplayedDataset(source, MIXED), sampler, Normalization())
    loader.set_epoch(view)
    shown = [(int(row), image) for batch in loader for row, image in zip(batch.row, batch.input, strict=True)]
    differ = [row for row, image in shown if not torch.equal(image, teacher[row])]
    everyone = gathered(([row for row, _ in shown], differ, dict(source.decoded)))
    return dict(zip(("shown", "differ", "decoded"), map(list, zip(*everyone, strict=True)), strict=True))


def main(output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    seen = {f"{count} {size}": epoch(count, size, view=1) for count in COUNTS for size in BATCH_SIZES}
    if dist.get_rank() == 0:
        torch.save(seen, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
