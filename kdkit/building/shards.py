"""Filling a cache: the teacher is run on every row of the shards that are missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch

from kdkit.building.encoder import ShardEncoder
from kdkit.building.groups import ShardGroup, batches_of, group_shards, share_of_rank, views_in_memory
from kdkit.building.plan import BuildPlan
from kdkit.building.teacher import run_teacher
from kdkit.building.unreadable import listing_unreadable, rows_left
from kdkit.cache.format.metadata import Shard
from kdkit.cache.shards.writer import ShardWriter
from kdkit.cache.writer import CacheWriter
from kdkit.data import RangeSampler, ReplayLoader, translate_worker_errors
from kdkit.runtime import distributed
from kdkit.runtime.progress import progress

RANK_TIMEOUT = timedelta(days=1)
"""How long a rank waits for the others: they meet only at the end, which a slow rank may reach hours later."""


def fill_together(writer: CacheWriter, missing: Sequence[Shard], plan: BuildPlan, *, show_progress: bool) -> int:
    """Each rank builds and seals its share of the missing shards.

    Args:
        writer: seals the shards.
        missing: all shards to build, the same on every rank.
        plan: the teacher, data and settings of the build.
        show_progress: whether rank 0 shows progress on standard error.

    Returns:
        Number of images on which the teacher ran, over all ranks.
    """
    groups = group_shards(missing, views_in_memory(plan, writer.metadata))
    mine = share_of_rank(groups, distributed.rank(), distributed.world_size())
    shards = [shard for group in mine for shard in group.shards]
    images = sum(shard.num_rows for shard in shards)
    shown = show_progress and distributed.rank() == 0
    with progress(f"running {plan.teacher.name}", images, "images", enabled=shown) as advance:

        def fill_mine() -> None:
            try:
                with listing_unreadable(plan, lambda: rows_left(writer, shards), show_progress=shown):
                    fill_shards(writer, mine, plan, advance)
            except Exception as error:
                if distributed.world_size() > 1:  # told at once: the others may take hours to come to their end
                    print(f"kdkit: rank {distributed.rank()} failed, waiting for the others: {error}", file=sys.stderr)
                raise

        distributed.run_on_all_ranks(fill_mine)
    return sum(shard.num_rows for shard in missing)


def fill_shards(
    writer: CacheWriter, groups: Sequence[ShardGroup], plan: BuildPlan, advance: Callable[[int], None]
) -> None:
    """Builds and seals shards, group by group, with one loader that never drains between them.

    Three things run at the same time: the loader's workers with the teacher, the encoder, and the writer.

    Args:
        writer: seals the shards.
        groups: the shards to build in this process; an image is decoded once for each group.
        plan: the teacher, data and settings of the build.
        advance: called with the number of images of each batch.
    """
    teacher, dataset, device = plan.teacher, plan.dataset, torch.device(plan.device)
    loader = ReplayLoader(
        dataset,
        RangeSampler([group.range for group in groups], plan.config.batch_size),
        teacher.input_normalization,
        device=device,
        num_workers=plan.config.workers if groups else 0,
    )
    loaded = loader.pixel_batches()
    with (
        translate_worker_errors(),
        ShardWriter(writer.seal) as sealing,
        ShardEncoder(writer.metadata, writer.codecs, sealing, teacher.name, dataset.keys, device) as encoder,
    ):
        for group in groups:
            for shard, pixels in batches_of(group, loaded, plan.config.batch_size):
                encoder.submit(shard, pixels, run_teacher(teacher, loader, pixels, writer.codecs))
                advance(len(pixels.row))
