"""Verifying a cache: its structure, all its checksums, and rows on which the teacher is run again."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kdkit.building.agreement import Compared, compare, rounding_of
from kdkit.building.teacher import device_of, for_dataset, run_teacher, with_streams
from kdkit.cache import CachedTeacher, open_cache
from kdkit.cache.format.constants import LOGITS
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.errors import CacheMismatchError
from kdkit.runtime.compare import check_match
from kdkit.teachers import Teacher

_BATCH_SIZE = 32  # of a cache that does not say which its build had


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
    """Stream -> mean absolute difference of such rows: of log-probabilities in nats, of features as a share of their
    mean size."""
    divergence: Mapping[int, float] = field(default_factory=dict)
    """View -> mean KL(teacher || cache) of its rows, nats at T = 1; empty without logits."""


def verify_cache(
    path: str | Path,
    teacher: Teacher | None = None,
    dataset: ReplayedDataset | None = None,
    *,
    num_rows: int = 64,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
    allow_mismatch: Collection[str] = (),
) -> VerifyReport:
    """Compares every checksum and, given a teacher and its dataset, random rows with the teacher's current outputs.

    The rows are judged together, by what precision and devices can explain (see kdkit.building.agreement).

    Args:
        path: the cache.
        teacher: the model that the cache was made with; None compares only checksums.
        dataset: the samples that the cache was made from; needed with a teacher.
        num_rows: total number of rows on which the teacher is run again, spread over as many views as possible.
        batch_size: images per forward pass of the teacher; None for that of the build.
        device: where the teacher runs; it is moved there. None leaves it where it is.
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
    teacher = for_dataset(teacher, dataset, cache.codecs)
    check_match("teacher", cache.metadata.teacher, teacher.fingerprint(), f"the cache {str(path)!r}", allow_mismatch)
    teacher = with_streams(teacher, cache.codecs)
    if device is not None:
        teacher = teacher.to(torch.device(device))
    device, built = device_of(teacher), cache.build_record
    rounding = rounding_of(teacher.fingerprint(), [device.type, built.device])
    batch_size = batch_size or built.batch_size or _BATCH_SIZE
    parts: dict[str, list[Compared]] = {stream: [] for stream in cache.codecs}
    places: list[tuple[int, int]] = []  # view and row
    for view, rows in _choose(dataset, num_rows, seed).items():
        loader = _loader(view, rows, teacher, dataset, batch_size, device)
        for pixels in loader.pixel_batches():
            for stream, values in run_teacher(teacher, loader, pixels, cache.codecs).items():
                encoded = cache.read_encoded(cache.rows_of(pixels.row), pixels.view, stream)
                parts[stream].append(compare(cache.codecs[stream], values, encoded, rounding))
            places += [(view, row) for row in pixels.row.tolist()]
    compared = {stream: Compared.join(found) for stream, found in parts.items()}
    for stream, found in compared.items():
        _check_agreement(found, cache, stream, dataset.keys, places)
    differences = {stream: float(found.difference.mean()) for stream, found in compared.items()}
    return VerifyReport(cache.num_rows, cache.num_views, len(places), differences, _by_view(compared, places))


def _by_view(compared: Mapping[str, Compared], places: Sequence[tuple[int, int]]) -> dict[int, float]:
    """View -> mean divergence of its rows; empty without logits."""
    if LOGITS not in compared or (divergence := compared[LOGITS].divergence) is None:
        return {}
    rows: dict[int, list[float]] = {}
    for (view, _), value in zip(places, divergence.tolist(), strict=True):
        rows.setdefault(view, []).append(value)
    return {view: sum(values) / len(values) for view, values in rows.items()}


def _choose(dataset: ReplayedDataset, num_rows: int, seed: int | None) -> dict[int, list[int]]:
    """View -> random rows to compare; the dataset may have fewer views than the cache."""
    draw, num_views = random.Random(seed), dataset.recipe.num_views
    views = sorted(draw.sample(range(num_views), min(num_views, num_rows)))
    each, rest = divmod(min(num_rows, len(views) * len(dataset)), len(views))
    return {view: draw.sample(range(len(dataset)), each + (n < rest)) for n, view in enumerate(views)}


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


def _check_agreement(
    found: Compared, cache: CachedTeacher, stream: str, keys: Sequence[str], places: Sequence[tuple[int, int]]
) -> None:
    if found.agrees:
        return
    view, row = places[found.worst]
    raise CacheMismatchError(
        f"the cache {str(cache.path)!r} differs from the teacher's current output, most on {keys[row]!r} "
        f"(view {view}): its {stream} differ by {float(found.difference[found.worst]):.3g} there, "
        f"{float(found.difference.mean()):.3g} {'nats' if stream == LOGITS else 'of their size'} on average, and "
        f"{float(found.allowed.mean()):.3g} is what the teacher's precision explains: build it again"
    )
