"""Verifying a cache: its structure, all its checksums, and rows that the teacher is asked about again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from kdkit.cache import open_cache
from kdkit.cache.mismatch import refuse_mismatch
from kdkit.cache.reader import LOGITS
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.data.replay import view_seed
from kdkit.engine.ask import ask
from kdkit.errors import CacheMismatchError
from kdkit.teachers import Teacher

TOLERANCE = 1e-3
"""Mean absolute difference of log-probabilities (nats) at which a row still counts as the teacher's: kernels round
differently in another batch or on another device."""


@dataclass(frozen=True)
class VerifyReport:
    """What was compared, all of it right."""

    num_rows: int
    """Samples whose checksums were compared, in every view."""
    num_views: int
    """Views of each."""
    rows_asked: int
    """Rows that the teacher was asked about again."""
    largest_difference: float
    """Largest mean absolute difference of such a row's log-probabilities, nats."""


def verify_cache(
    path: str | Path,
    teacher: Teacher | None = None,
    dataset: ReplayedDataset | None = None,
    *,
    num_rows: int = 64,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    allow_mismatch: Collection[str] = (),
) -> VerifyReport:
    """Compares every checksum, and with a teacher and its dataset, random rows of every view with what it says now.

    Args:
        path: the cache.
        teacher: who made it; None compares checksums alone.
        dataset: what it was made from; needed with a teacher.
        num_rows: how many rows the teacher is asked about again, in all.
        batch_size: images it is given at once.
        device: where it runs.
        allow_mismatch: fields, as an error names them, in which teacher or dataset may differ from what the cache was
            made with; what the teacher says is compared all the same.

    Raises:
        CacheCorruptError: a checksum differs; names file, view and rows.
        CacheMismatchError: the teacher is another one, or says something else about a row; names the sample.
    """
    cache = open_cache(path, dataset, allow_mismatch=allow_mismatch)
    cache.verify()
    if dataset is not None:
        dataset = dataset.for_teacher()
    if teacher is None or dataset is None:
        return VerifyReport(cache.num_rows, cache.num_views, 0, 0.0)
    refuse_mismatch(
        "teacher", cache.metadata.teacher, teacher.fingerprint(), f"the cache {str(path)!r}", allow_mismatch
    )
    codec, largest, asked = cache.codecs[LOGITS], 0.0, 0
    each = max(1, num_rows // cache.num_views)
    for view in range(min(cache.num_views, num_rows)):
        generator = torch.Generator().manual_seed(view_seed(dataset.recipe.seed, "verify", view) >> 1)
        rows = torch.randperm(len(dataset), generator=generator)[:each].tolist()
        sampler = EpochSampler(rows, batch_size, num_views=cache.num_views, shuffle=False)
        sampler.set_epoch(view)
        loader = ReplayLoader(dataset, sampler, teacher.input_normalization, device=device)
        for pixels in loader.pixel_batches():
            now = codec.decode(codec.encode(ask(teacher, loader, pixels, [LOGITS])[LOGITS]))
            then = codec.decode(cache.read(cache.rows_of(pixels.row), view)).to(now.device)
            difference = (now - then).abs().mean(dim=1)
            if float(difference.max()) > TOLERANCE:
                key = dataset.keys[int(pixels.row[difference.argmax()])]
                raise CacheMismatchError(
                    f"the cache {str(path)!r} does not hold what the teacher says now about {key!r} (view {view}): its "
                    f"log-probabilities differ by {float(difference.max()):.3g} on average: build it again"
                )
            largest, asked = max(largest, float(difference.max())), asked + len(pixels.row)
    return VerifyReport(cache.num_rows, cache.num_views, asked, largest)
