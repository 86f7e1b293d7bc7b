"""Building a cache: the teacher is run once on every view of every sample.

dataset[i] -> replayed view (i, v) -> teacher -> codec.encode -> shard of rows -> sealed.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from kdkit.building.config import BuildConfig, Engine
from kdkit.building.plan import BuildPlan, as_built
from kdkit.building.shards import fill_together
from kdkit.building.teacher import for_dataset, placed, with_streams
from kdkit.building.unreadable import leave_out_unreadable, listing_unreadable, rows_left
from kdkit.cache.lazy_arrays import BEGUN, begun_at
from kdkit.cache.reader import CachedTeacher
from kdkit.cache.writer import CacheWriter
from kdkit.data import ReplayedDataset, translate_worker_errors
from kdkit.data.ranks import check_same_on_ranks
from kdkit.runtime import distributed
from kdkit.runtime.agreement import check_same_settings
from kdkit.teachers import Teacher


@dataclass(frozen=True)
class BuildReport:
    """The result of a build."""

    path: Path
    """The packed file, or the folder of shards."""
    num_rows: int
    """Samples in the cache."""
    num_views: int
    """Views of each sample."""
    num_bytes: int
    """Bytes on disk."""
    images_built: int
    """Images on which the teacher ran in this run, over all processes. Fewer than rows times views after a resume."""
    seconds: float
    """Wall time of this run."""


@translate_worker_errors()  # torch may report a death once more, from whatever runs then
def build_cache(
    teacher: Teacher,
    dataset: ReplayedDataset,
    path: str | Path,
    config: BuildConfig | None = None,
    *,
    device: torch.device | str | None = None,
    allow_mismatch: Collection[str] = (),
    show_progress: bool = False,
    engine: Engine = "local",
    actors: int = 1,
) -> BuildReport:
    """Runs `teacher` on every view of every sample and stores its outputs in a cache at `path`.

    An interrupted build resumes when this function is called again with the same teacher, dataset and
    recipe; finished shards are kept. A complete cache is left unchanged. In a run of several ranks
    (torch.distributed is initialised) each rank builds a share of the shards; the number of ranks, the engine and the
    batch size may change from run to run.

    Args:
        teacher: the frozen model to run.
        dataset: samples and recipe.
        path: the packed file to write; shards are kept in `path`.parts until all are sealed.
        config: streams, codecs, batch size and other settings.
        device: where the teacher runs; it is moved there. None leaves it where it is.
        allow_mismatch: fields, named as in the error, in which the cache at `path` may differ from this run, such as
            "teacher.weights_sha256"; its streams, views and samples must agree.
        show_progress: whether progress is shown on standard error, by rank 0.
        engine: "local" runs the teacher in this process and its ranks, "ray" in actors on a Ray cluster.
        actors: how many actors the engine "ray" starts, each with a teacher.

    Raises:
        UnreadableError: images cannot be read; names all of them, and leaves finished shards.
        CacheMismatchError: the cache at `path` was made with other settings; names the field and both values.
        DatasetError, ConfigError: another rank has other data, another teacher or other settings; names the rank and
            the first difference.
        CacheLockedError: another process is building it.
        NonFiniteOutputError: an output is NaN, infinite, or beyond what the codec can hold; names samples.
        CacheError: the folder cannot be written, or the disk is full.
        MissingDependencyError: the engine is "ray", and Ray is not installed.
    """
    begun, config, path = time.monotonic(), config or BuildConfig(), Path(path)
    check_same_on_ranks(dataset)
    dataset = leave_out_unreadable(as_built(dataset), path, config, show_progress=show_progress)
    teacher = with_streams(for_dataset(teacher, dataset, config.streams), config.streams)
    teacher, device = placed(teacher, device)
    teacher = teacher.compile() if config.compile else teacher
    plan = BuildPlan(teacher, dataset, config, device, allow_mismatch, show_progress=show_progress)
    check_same_settings(lambda: {"teacher": plan.teacher.fingerprint(), "streams": list(plan.config.streams)})
    with ExitStack() as held:

        def begin() -> CacheWriter:
            with listing_unreadable(plan, lambda: range(len(dataset)), show_progress=show_progress):
                writer = held.enter_context(CacheWriter.create(path, plan))
                plan.check_same_pixels(writer)
                return writer

        writer = distributed.on_rank_zero(begin)
        return fill_and_finish(writer, plan, begun, show_progress=show_progress, engine=engine, actors=actors)


def fill_and_finish(
    writer: CacheWriter,
    plan: BuildPlan,
    begun: float,
    *,
    show_progress: bool,
    engine: Engine = "local",
    actors: int = 1,
) -> BuildReport:
    """Builds the missing shards, finishes the cache and describes it.

    Args:
        writer: the writer of the cache; on rank 0, the writer that created it.
        plan: the teacher, data and settings of the build.
        begun: monotonic time at which the run began, seconds.
        show_progress, engine, actors: as for build_cache.
    """
    missing = distributed.on_rank_zero(writer.missing)
    if engine == "ray" and missing:
        from kdkit.building.ray import fill_on_actors

        with listing_unreadable(plan, lambda: rows_left(writer, missing), show_progress=show_progress):
            images = fill_on_actors(writer, missing, plan, actors=actors, show_progress=show_progress)
    else:
        images = fill_together(writer, missing, plan, show_progress=show_progress)
    record = {
        "seconds": round(time.monotonic() - begun, 3),
        "images": images,
        "device": str(plan.device),
        "batch_size": plan.config.batch_size,
    }

    def finish() -> Path:
        return writer.finish(pack=plan.config.pack, record={**record, BEGUN: begun_at(writer.path)})

    place = distributed.on_rank_zero(finish)
    cache = CachedTeacher(place)
    return BuildReport(place, cache.num_rows, cache.num_views, cache.num_bytes, images, time.monotonic() - begun)


def describe_report(report: BuildReport) -> str:
    """Formats a report as one line of text."""
    return (
        f"{report.path}: {report.num_rows:,} images x {report.num_views} views, {report.num_bytes:,} bytes; "
        f"teacher run on {report.images_built:,} in {report.seconds:.1f} s"
    )
