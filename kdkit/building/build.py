"""Building a cache: the teacher is asked once for every view of every sample.

dataset[i] -> replayed view (i, v) -> teacher -> codec.encode -> shard of rows -> sealed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from kdkit.building.config import BuildConfig
from kdkit.building.plan import as_built, check_same_build
from kdkit.building.resume import check_writable, remove_remains, resume_or_start
from kdkit.building.shards import fill_together
from kdkit.building.teacher import with_streams
from kdkit.cache.extension import Extension
from kdkit.cache.packing import pack as pack_parts
from kdkit.cache.reader import CachedTeacher
from kdkit.cache.shards.folder import ShardFolder, packed_path, shard_folder
from kdkit.cache.shards.lock import writer_lock
from kdkit.cache.write_errors import cache_write_errors
from kdkit.data import ReplayedDataset
from kdkit.runtime import distributed, files
from kdkit.teachers import Teacher


@dataclass(frozen=True)
class BuildReport:
    """What a build did."""

    path: Path
    """The packed file, or the parts folder."""
    num_rows: int
    """Samples in the cache."""
    num_views: int
    """Views of each."""
    num_bytes: int
    """Bytes on disk."""
    images_built: int
    """Images that the teacher was asked about in this run, on all ranks; fewer than rows times views after a resume."""
    seconds: float
    """Wall time of this run."""


def build_cache(
    teacher: Teacher,
    dataset: ReplayedDataset,
    path: str | Path,
    config: BuildConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    allow_mismatch: Collection[str] = (),
    show_progress: bool = False,
) -> BuildReport:
    """Asks `teacher` about every view of every sample and keeps the answers in a cache at `path`.

    A build that was stopped, in whatever way, goes on where it stopped when it is called again with the same teacher,
    dataset and recipe; finished shards are kept. A cache that is complete already is left as it is. In a run of several
    ranks (torch.distributed is initialised) each rank asks about a share of the shards; the number of ranks and the
    batch size may change from run to run.

    Args:
        teacher: who is asked.
        dataset: samples and recipe.
        path: the packed file to be; shards are kept in `path`.parts until all are sealed.
        config: streams, codecs, batch size and the like.
        device: where the teacher runs; it is moved there.
        allow_mismatch: fields, as an error names them, in which what is at `path` may differ from this run, such as
            "teacher.weights_sha256"; what streams, views and samples there are must agree.
        show_progress: whether progress is shown on standard error, by rank 0.

    Raises:
        CacheMismatchError: what is at `path` was made with something else; names the field and both values.
        CacheLockedError: another process is building it.
        NonFiniteOutputError: the teacher said NaN or infinity, or what the codec cannot hold; names samples.
        CacheError: the folder cannot be written, or the disk is full.
    """
    config = config or BuildConfig()
    dataset = as_built(dataset)
    path = Path(path)
    begun = time.monotonic()
    teacher = with_streams(teacher, config.streams).to(torch.device(device))
    folder = shard_folder(path)
    with ExitStack() as held:

        def begin() -> ShardFolder | None:
            """On rank 0: takes the lock and finds out what is to do; None where all is done."""
            if not path.is_file():
                check_writable(path)
                with cache_write_errors():
                    files.make_folder(folder)
                held.enter_context(writer_lock(folder))
                if not path.is_file():
                    return resume_or_start(path, teacher, dataset, config, device, allow_mismatch)
                held.close()  # another process has packed it while this one came for the lock
            packed = CachedTeacher(path).metadata
            check_same_build(path, packed, teacher, dataset, config, allow_mismatch)
            remove_remains(path, packed.num_views)
            return None

        parts = distributed.on_rank_zero(begin)
        if parts is None:
            return report_on(path, images_built=0, begun=begun)
        missing = distributed.on_rank_zero(parts.missing)
        images_built = fill_together(parts, missing, teacher, dataset, config, device, show_progress=show_progress)
        if config.pack:
            record = build_record(begun, images_built, device)
            distributed.on_rank_zero(lambda: pack_parts(parts, path, record))
    return report_on(path if config.pack else folder, images_built=images_built, begun=begun)


def pack_cache(path: str | Path) -> Path:
    """Packs the finished shards in `path`.parts into one file at `path`, and returns that; they may be an extension's.

    Args:
        path: the packed file to be, or its folder of shards.

    Raises:
        CacheNotFoundError: there are no shards.
        CacheIncompleteError: some are missing.
        CacheLockedError: they are being written.
    """
    path = packed_path(Path(path))
    folder = shard_folder(path)
    parts = ShardFolder.open(folder)
    with writer_lock(folder):
        if path.is_file():
            Extension.begin(path, CachedTeacher(path).metadata, parts.metadata.num_views).finish("{}")
        else:
            pack_parts(parts, path)
    return path


def report_on(path: Path, *, images_built: int, begun: float) -> BuildReport:
    """What stands at `path` now, after a run that began at that monotonic time."""
    cache = CachedTeacher(path)
    return BuildReport(path, cache.num_rows, cache.num_views, cache.num_bytes, images_built, time.monotonic() - begun)


def describe_report(report: BuildReport) -> str:
    """A line for people."""
    return (
        f"{report.path}: {report.num_rows:,} images x {report.num_views} views, {report.num_bytes:,} bytes; "
        f"{report.images_built:,} asked in {report.seconds:.1f} s"
    )


def build_record(begun: float, images: int, device: torch.device | str) -> str:
    """JSON text of time and cost of a run that began at that monotonic time; kept apart from the metadata."""
    return json.dumps({"seconds": round(time.monotonic() - begun, 3), "images": images, "device": str(device)})
