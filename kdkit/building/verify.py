"""Verifying a cache: its structure, all its checksums, and rows on which the teacher is run again."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kdkit.building.agreement import Compared, compare, rounding_of
from kdkit.building.diagnosis import Rerun, choose_places, find_cause
from kdkit.building.label_agreement import LabelAgreement, label_agreement
from kdkit.building.scan import content_records
from kdkit.building.teacher import device_of, for_dataset, placed, run_teacher, with_streams
from kdkit.cache import CachedTeacher, open_cache
from kdkit.cache.content import CONTENT_FIELD
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.format.keys import list_keys
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.errors import CacheMismatchError, ClassMismatchError
from kdkit.runtime.compare import check_match
from kdkit.runtime.hardware import choose_workers
from kdkit.teachers import Teacher
from kdkit.teachers.fingerprint import UNKNOWN

_MANY_FILES = 10_000  # that are read in worker processes, which take seconds to start
_BATCH_SIZE = 32  # of a cache that does not say which its build had
_CLOSE = 0.05
"""Share of what images differ by, that outputs of an unknown origin may be off the teacher's: other resizing, other
libraries, half precision."""


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
    labels: LabelAgreement | None = None
    """How often the cached top-1 is the label; None without labels of the cache's classes."""
    unexplained: float = 0.0
    """Share of what the outputs of different images differ by, by which outputs that kdkit did not build are off the
    teacher's; 0 where they match within its precision."""


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

    The rows are judged together, by what precision and devices can explain (see kdkit.building.agreement). Where they
    do not match, the error names the likely cause: rows that are shuffled or shifted, views that were flipped, permuted
    classes, another crop or normalisation, softmax applied twice, or a temperature (see kdkit.building.diagnosis). Of
    a cache without pixel hashes, as of imported or own outputs, labels alone show some of these.

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
        CacheMismatchError: an image, the teacher or its output on a row differs; names the sample and, where it
            is found, the cause.
        ClassMismatchError: the teacher has other classes than the cache.
    """
    cache, num_files, labels = open_cache(path), 0, None
    if dataset is not None:
        dataset, num_files = _match(cache, dataset, allow_mismatch)
    cache.verify()
    if dataset is not None:
        labels = label_agreement(cache, dataset)
    if teacher is None or dataset is None:
        _check_labels(cache, labels)
        return VerifyReport(cache.num_rows, cache.num_views, 0, {}, num_files=num_files, labels=labels)
    teacher = _prepare(teacher, cache, dataset, device, allow_mismatch)
    batch_size = batch_size or cache.build_record.batch_size or _BATCH_SIZE
    compared, places = _run_again(teacher, cache, dataset, _choose(dataset, num_rows, seed), batch_size)
    left = 0.0
    for stream, found in compared.items():
        if not found.agrees:
            run = Rerun(teacher, cache, dataset, choose_places(places), batch_size)
            left = _check_close(found, run, stream, places)
    _check_labels(cache, labels)
    differences = {stream: float(found.difference.mean()) for stream, found in compared.items()}
    return VerifyReport(
        cache.num_rows, cache.num_views, len(places), differences, _by_view(compared, places), num_files, labels, left
    )


def _prepare(
    teacher: Teacher,
    cache: CachedTeacher,
    dataset: ReplayedDataset,
    device: torch.device | str | None,
    allow: Collection[str],
) -> Teacher:
    """The teacher with the classes and the streams of the cache, compared with what the cache tells of its own."""
    if cache.names_classes:
        teacher = for_dataset(teacher, dataset, cache.codecs)
    if cache.teacher["weights_sha256"] != UNKNOWN:
        check_match("teacher", cache.teacher, teacher.fingerprint(), f"the cache {str(cache.path)!r}", allow)
    elif LOGITS in cache.codecs and teacher.num_classes not in (None, cache.num_classes):
        raise ClassMismatchError(
            f"the teacher {teacher.name!r} has {teacher.num_classes} classes, the cache {str(cache.path)!r} has "
            f"{cache.num_classes}: give the teacher that its outputs come from, or its class map"
        )
    teacher = with_streams(teacher, cache.codecs)
    return placed(teacher, device)[0]


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


def _check_labels(cache: CachedTeacher, labels: LabelAgreement | None) -> None:
    """Raises CacheMismatchError if the labels show what is wrong with outputs whose pixels nobody hashed."""
    if cache.metadata.has_pixels or labels is None or labels.cause is None:
        return
    raise CacheMismatchError(
        f"the outputs in the cache {str(cache.path)!r} do not fit the labels ({labels.overall:.1%} agree, "
        f"{labels.chance:.1%} by chance): likely {labels.cause.text}"
    )


def _check_close(found: Compared, run: Rerun, stream: str, places: Sequence[tuple[int, int]]) -> float:
    """The share of what images differ by that outputs of unknown origin are off; small enough, and nothing explains it.

    Raises:
        CacheMismatchError: the rows are not the teacher's; names the worst and the likely cause.
    """
    cause, left, reason = None, 1.0, "build it again"
    if stream == LOGITS and not run.cache.is_multi_label:
        cause, left = find_cause(run)
        reason = f"likely {cause.text}" if cause else "none of the known causes explains it: is it another teacher?"
        if cause is None and left <= _CLOSE and run.cache.teacher["weights_sha256"] == UNKNOWN:
            return left
    view, row = places[found.worst]
    raise CacheMismatchError(
        f"the cache {str(run.cache.path)!r} differs from the teacher's current output, most on "
        f"{run.dataset.keys[row]!r} (view {view}): its {stream} differ by {float(found.difference[found.worst]):.3g} "
        f"there, {float(found.difference.mean()):.3g} {'nats' if stream == LOGITS else 'of their size'} on average, "
        f"and {float(found.allowed.mean()):.3g} is what the teacher's precision explains: {reason}"
    )
