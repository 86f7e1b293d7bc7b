"""Filling a parts folder: the teacher is asked about every row of the shards that are missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch

from kdkit.building.config import BuildConfig
from kdkit.building.encoder import ShardEncoder
from kdkit.building.teacher import run_teacher
from kdkit.cache.format.metadata import Shard
from kdkit.cache.opening import open_index
from kdkit.cache.shards.folder import ShardFolder
from kdkit.cache.shards.writer import ShardWriter
from kdkit.data import PixelBatch, RangeSampler, ReplayedDataset, ReplayLoader, translate_worker_errors
from kdkit.runtime import distributed
from kdkit.runtime.progress import Advance, progress
from kdkit.teachers import Teacher

RANK_TIMEOUT = timedelta(days=1)
"""How long a rank waits for others: they meet at the end alone, which a slow one may reach hours after the rest."""


def fill_together(
    parts: ShardFolder,
    missing: Sequence[Shard],
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
    *,
    show_progress: bool,
) -> int:
    """Each rank builds and seals its share of the missing shards; returns the images that all ranks asked about."""
    mine = missing[distributed.rank() :: distributed.world_size()]
    images = sum(shard.num_rows for shard in mine)
    shown = show_progress and distributed.rank() == 0
    with progress(f"asking {teacher.name}", images, "images", enabled=shown) as advance:

        def fill_mine() -> None:
            try:
                _fill(parts, mine, teacher, dataset, config, torch.device(device), advance)
            except Exception as error:
                if distributed.world_size() > 1:  # said now: the others may take hours to come to their end
                    print(
                        f"kdkit: rank {distributed.rank()} failed, and waits for the others: {error}", file=sys.stderr
                    )
                raise

        distributed.run_on_all_ranks(fill_mine)
    return sum(shard.num_rows for shard in missing)


def _fill(
    parts: ShardFolder,
    shards: Sequence[Shard],
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device,
    advance: Advance,
) -> None:
    """One shard after the other, with one loader that never drains between them.

    Three things run side by side: the loader's workers and the teacher, the encoder, and the writer.
    """
    codecs = open_index(parts)
    loader = ReplayLoader(
        dataset,
        RangeSampler([(shard.view, shard.start, shard.stop) for shard in shards], config.batch_size),
        teacher.input_normalization,
        device=device,
        num_workers=config.workers if shards else 0,
    )
    batches = loader.pixel_batches()
    with (
        translate_worker_errors(),
        ShardWriter(parts) as writer,
        ShardEncoder(parts.metadata, codecs, writer, teacher.name, dataset.keys, device) as encoder,
    ):
        for shard in shards:
            for pixels in _batches_of(shard, batches):
                encoder.submit(shard, pixels, run_teacher(teacher, loader, pixels, codecs))
                advance(len(pixels.row))


def _batches_of(shard: Shard, batches: Iterator[PixelBatch]) -> Iterator[PixelBatch]:
    """The next batches, up to the shard's last row."""
    rows = 0
    while rows < shard.num_rows:
        batch = next(batches)
        rows += len(batch.row)
        yield batch
