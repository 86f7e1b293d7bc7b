"""Verifying a cache: its structure, all its checksums, and rows on which the teacher is run again."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kdkit.building.agreement import Compared, compare, rounding_of
from kdkit.building.scan import content_records
from kdkit.building.teacher import device_of, for_dataset, placed, run_teacher, with_streams
from kdkit.cache import CachedTeacher, open_cache
from kdkit.cache.content import CONTENT_FIELD
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.format.keys import list_keys
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.errors import CacheMismatchError
from kdkit.runtime.compare import check_match
from kdkit.runtime.hardware import choose_workers
from kdkit.teachers import Teacher

_MANY_FILES = 10_000  # that are read in worker processes, which take seconds to start
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
    num_files: int = 0
    """Samples whose content was read and compared; 0 without a dataset, and where the cache has no records of it."""


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
        CacheMismatchError: an image, the teacher or its output on a row differs; names the sample.
    """
    cache, num_files = open_cache(path), 0
    if dataset is not None:
        dataset, num_files = _match(cache, dataset, allow_mismatch)
    cache.verify()
    if teacher is None or dataset is None:
        return VerifyReport(cache.num_rows, cache.num_views, 0, {}, num_files=num_files)
    teacher = for_dataset(teacher, dataset, cache.codecs)
    check_match("teacher", cache.metadata.teacher, teacher.fingerprint(), f"the cache {str(path)!r}", allow_mismatch)
    teacher = with_streams(teacher, cache.codecs)
    teacher, _ = placed(teacher, device)
    batch_size = batch_size or cache.build_record.batch_size or _BATCH_SIZE
    compared, places = _run_again(teacher, cache, dataset, _choose(dataset, num_rows, seed), batch_size)
    for stream, found in compared.items():
        _check_agreement(found, cache, stream, dataset.keys, places)
    differences = {stream: float(found.difference.mean()) for stream, found in compared.items()}
    return VerifyReport(
        cache.num_rows, cache.num_views, len(places), differences, _by_view(compared, places), num_files
    )


def _run_again(
    teacher: Teacher,
    cache: CachedTeacher,
    dataset: ReplayedDataset,
    chosen: Mapping[int, Sequence[int]],
    batch_size: int,
) -> tuple[dict[str, Compared], list[tuple[int, int]]]:
    """Stream -> the comparison of the chosen rows, view -> rows; and the view and row of each."""
    device = device_of(teacher)
    rounding = rounding_of(teacher.fingerprint(), [device.type, cache.build_record.device])
    parts: dict[str, list[Compared]] = {stream: [] for stream in cache.codecs}
    places: list[tuple[int, int]] = []
    for view, rows in chosen.items():
        loader = _loader(view, rows, teacher, dataset, batch_size, device)
        for pixels in loader.pixel_batches():
            for stream, values in run_teacher(teacher, loader, pixels, cache.codecs).items():
                encoded = cache.read_encoded(cache.rows_of(pixels.row), pixels.view, stream)
                parts[stream].append(compare(cache.codecs[stream], values, encoded, rounding))
            places += [(view, row) for row in pixels.row.tolist()]
    return {stream: Compared.join(found) for stream, found in parts.items()}, places


def _match(cache: CachedTeacher, dataset: ReplayedDataset, allow: Collection[str]) -> tuple[ReplayedDataset, int]:
    """The dataset that the cache was matched with, as the teacher sees it, and how many of its files were compared."""
    dataset = dataset.without(cache.absent_keys)
    cache.match(dataset, allow_mismatch=allow)
    return dataset.for_teacher(), _check_all_content(cache, dataset, allow)


def _check_all_content(cache: CachedTeacher, dataset: ReplayedDataset, allow: Collection[str]) -> int:
    """Reads all files and compares them with the cache's records; returns their number, 0 where it has none.

    Raises:
        CacheMismatchError: files were replaced; names them.
    """
    if cache.metadata.content_kind != dataset.content.kind or CONTENT_FIELD in allow:
        return 0
    rows = cache.rows_of(torch.arange(len(dataset)))
    records, changed = cache.content()[rows], []
    workers = choose_workers("auto") if len(dataset) > _MANY_FILES else 0
    for row, record in content_records(dataset, workers, show_progress=False):
        if record != records[row].tobytes():
            changed.append(dataset.keys[row])
    if changed:
        raise CacheMismatchError(
            f"the cache {str(cache.path)!r} was built from other images under the names of {len(changed)} of "
            f"{len(dataset)} ({list_keys(changed)}): put the first ones back, or build another cache"
        )
    return len(dataset)


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
