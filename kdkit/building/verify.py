"""Verifying a cache: its structure, all its checksums, and rows on which the teacher is run again."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kdkit.building.teacher import for_dataset, run_teacher, with_streams
from kdkit.cache import CachedTeacher, open_cache
from kdkit.cache.fidelity import kl_divergence
from kdkit.cache.format.constants import LOGITS
from kdkit.data import EpochSampler, PixelBatch, ReplayedDataset, ReplayLoader
from kdkit.errors import CacheMismatchError
from kdkit.runtime.compare import check_match
from kdkit.teachers import Teacher

TOLERANCE = 1e-3
"""Mean absolute difference of log-probabilities (nats), or of features (share of their mean size), at which a row still
counts as the teacher's: kernels round differently in another batch or on another device."""
_SLACK, _EXACT = 0.05, 1e-6  # of the divergence of a row encoded afresh, and nats


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification that found no difference."""

    num_rows: int
    """Samples whose checksums were compared, in every view."""
    num_views: int
    """Views of each."""
    rows_compared: int
    """Rows on which the teacher was run again."""
    differences: Mapping[str, float]
    """Stream -> largest mean absolute difference of such a row: of log-probabilities in nats, of features as a share of
    their mean size."""
    divergence: Mapping[int, float] = field(default_factory=dict)
    """View -> mean KL(teacher || cache) of its rows, nats at T = 1; empty without logits."""


def verify_cache(
    path: str | Path,
    teacher: Teacher | None = None,
    dataset: ReplayedDataset | None = None,
    *,
    num_rows: int = 64,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    allow_mismatch: Collection[str] = (),
) -> VerifyReport:
    """Compares every checksum and, given a teacher and its dataset, random rows with the teacher's current outputs.

    Args:
        path: the cache.
        teacher: the model that the cache was made with; None compares only checksums.
        dataset: the samples that the cache was made from; needed with a teacher.
        num_rows: total number of rows on which the teacher is run again, spread over as many views as possible.
        batch_size: images per forward pass of the teacher.
        device: where the teacher runs; it is moved there.
        seed: seed of the choice of views and rows; by default, each call chooses different ones.
        allow_mismatch: fields, named as in the error, in which teacher or dataset may differ from what the cache was
            made with; the outputs are compared all the same.

    Raises:
        CacheCorruptError: a checksum differs; names file, view and rows.
        CacheMismatchError: the teacher is a different one, or its output on a row differs; names the sample.
    """
    cache = open_cache(path)
    if dataset is not None:
        dataset = dataset.without(cache.absent_keys)
        cache.match(dataset, allow_mismatch=allow_mismatch)
        dataset = dataset.for_teacher()
    cache.verify()
    if teacher is None or dataset is None:
        return VerifyReport(cache.num_rows, cache.num_views, 0, {})
    teacher = for_dataset(teacher, dataset)
    check_match("teacher", cache.metadata.teacher, teacher.fingerprint(), f"the cache {str(path)!r}", allow_mismatch)
    teacher = with_streams(teacher, cache.codecs).to(torch.device(device))
    differences, compared_rows, kept = dict.fromkeys(cache.codecs, 0.0), 0, {}
    for view, rows in _choose(dataset, num_rows, seed).items():
        loader, divergences = _loader(view, rows, teacher, dataset, batch_size, device), []
        for pixels in loader.pixel_batches():
            for stream, values in run_teacher(teacher, loader, pixels, cache.codecs).items():
                compared = _compare(cache, stream, values, pixels)
                _check_same_output(compared, cache, stream, loader.dataset.keys, pixels)
                differences[stream] = max(differences[stream], float(compared.difference.max()))
                divergences += [] if compared.divergence is None else compared.divergence.tolist()
            compared_rows += len(pixels.row)
        if divergences:
            kept[view] = sum(divergences) / len(divergences)
    return VerifyReport(cache.num_rows, cache.num_views, compared_rows, differences, kept)


def _choose(dataset: ReplayedDataset, num_rows: int, seed: int | None) -> dict[int, list[int]]:
    """View -> random rows to compare; the dataset may have fewer views than the cache."""
    draw, num_views = random.Random(seed), dataset.recipe.num_views
    views = sorted(draw.sample(range(num_views), min(num_views, num_rows)))
    each = min(len(dataset), num_rows // len(views))
    return {view: draw.sample(range(len(dataset)), each) for view in views}


def _loader(
    view: int,
    rows: Sequence[int],
    teacher: Teacher,
    dataset: ReplayedDataset,
    batch_size: int,
    device: torch.device | str,
) -> ReplayLoader:
    """The rows of a view."""
    sampler = EpochSampler(rows, batch_size, num_views=dataset.recipe.num_views, shuffle=False)
    sampler.set_epoch(view)
    return ReplayLoader(dataset, sampler, teacher.input_normalization, device=device)


@dataclass(frozen=True)
class _Compared:
    """The comparison of a batch of one stream, cached, with the teacher's current output; each field [B]."""

    difference: Tensor
    """Mean absolute difference of a row, encoded afresh, from the cached one; of features as a share of their size."""
    divergence: Tensor | None
    """KL(current teacher || cache) in nats; None for features."""
    agrees: Tensor
    """Whether the row counts as the teacher's output."""


def _compare(cache: CachedTeacher, stream: str, values: Tensor, pixels: PixelBatch) -> _Compared:
    """Compares the teacher's current outputs, [B, ...], with the cached rows."""
    codec = cache.codecs[stream]
    now = codec.decode(codec.encode(values))
    then = codec.decode(cache.read_encoded(cache.rows_of(pixels.row), pixels.view, stream)).to(now.device)
    difference = (now - then).flatten(1).abs().mean(dim=1)
    if stream != LOGITS:
        difference /= now.flatten(1).abs().mean(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        return _Compared(difference, None, difference <= TOLERANCE)
    divergence, optimum = kl_divergence(values, then), kl_divergence(values, now)
    as_good = divergence <= optimum * (1 + _SLACK) + _EXACT  # lowrank's search may end at another good solution
    return _Compared(difference, divergence, (difference <= TOLERANCE) | as_good)


def _check_same_output(
    compared: _Compared, cache: CachedTeacher, stream: str, keys: Sequence[str], pixels: PixelBatch
) -> None:
    if compared.agrees.all():
        return
    worst = int(compared.difference.masked_fill(compared.agrees, -1).argmax())
    raise CacheMismatchError(
        f"the cache {str(cache.path)!r} differs from the teacher's current output on {keys[int(pixels.row[worst])]!r} "
        f"(view {int(pixels.view[worst])}): its {stream} differ by {float(compared.difference[worst]):.3g} "
        f"{'nats' if stream == LOGITS else 'of their size'} on average: build it again"
    )
