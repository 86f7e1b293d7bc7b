"""Groups of shards that are built together: the same rows in several views, so that each image is decoded once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdkit.building.plan import BuildPlan
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.data import ArraySource, PixelBatch

_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ShardGroup:
    """Shards of the same rows in different views."""

    shards: tuple[Shard, ...]

    @property
    def num_images(self) -> int:
        """Number of views that the teacher runs on."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def range(self) -> tuple[tuple[int, ...], int, int]:
        """Views, first row and end, as RangeSampler takes them."""
        return tuple(shard.view for shard in self.shards), self.shards[0].start, self.shards[0].stop

    def __str__(self) -> str:
        if len(self.shards) == 1:
            return str(self.shards[0])
        views, start, stop = self.range
        return f"views {views[0]} to {views[-1]}, rows {start} to {stop - 1}"


def views_in_memory(plan: BuildPlan, metadata: CacheMetadata) -> int:
    """Number of views, at least 1, of which a batch of pixels and a shard each fit into the plan's memory."""
    if type(plan.dataset.source) is ArraySource:  # nothing to decode, so that a kill need not lose several shards
        return 1
    recipe, config = plan.dataset.recipe, plan.config
    size = recipe.size if recipe.teacher_size is None else recipe.teacher_size
    pixels = min(config.batch_size, metadata.num_rows) * 3 * size * size
    shard = min(metadata.shard_rows, metadata.num_rows) * metadata.all_row_bytes
    return max(1, config.memory * _MEBIBYTE // (pixels + shard))


def group_shards(shards: Sequence[Shard], views: int) -> list[ShardGroup]:
    """The shards in groups of up to `views` views.

    All rows are built in the first `views` views before the next ones begin, as view by view if `views` is 1.
    """
    ordered = sorted(shards, key=lambda shard: (shard.view // views, shard.start, shard.view))
    grouped = itertools.groupby(ordered, key=lambda shard: (shard.view // views, shard.start))
    return [ShardGroup(tuple(together)) for _, together in grouped]


def share_of_rank(groups: Sequence[ShardGroup], rank: int, world_size: int) -> list[ShardGroup]:
    """The part of one rank: as many shards as any other rank has, or one less; it splits few groups."""
    shards = [shard for group in groups for shard in group.shards]
    first, stop = (len(shards) * number // world_size for number in (rank, rank + 1))
    position, mine = 0, []
    for group in groups:
        part = group.shards[max(0, first - position) : max(0, stop - position)]
        mine += [ShardGroup(part)] if part else []
        position += len(group.shards)
    return mine


def batches_of(group: ShardGroup, loaded: Iterator[PixelBatch], batch_size: int) -> Iterator[tuple[Shard, PixelBatch]]:
    """The batches of each shard of a group: of every block of rows one per view, as if its view were built alone.

    Args:
        group: the shards.
        loaded: what a RangeSampler's loader yields for `group.range`.
        batch_size: rows per block.
    """
    _, start, stop = group.range
    for first in range(start, stop, batch_size):
        rows, parts = min(batch_size, stop - first), []
        while rows > 0:
            part = next(loaded)
            rows -= len({*part.row.tolist(), *(row for row, _ in part.skipped)})
            parts.append(part)
        for shard in group.shards:
            yield shard, PixelBatch.of_view(parts, shard.view)
