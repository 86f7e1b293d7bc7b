"""Building a cache: the teacher is asked once for every view of every sample.

dataset[i] -> replayed view (i, v) -> teacher -> codec.encode -> shard of rows -> sealed.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdkit.cache import durable
from kdkit.cache.lock import writer_lock
from kdkit.cache.pack import pack as pack_parts
from kdkit.cache.parts import INDEX_NAME, Parts, parts_folder
from kdkit.cache.pixels import check_pixels
from kdkit.cache.reader import CachedTeacher, shard_pixel_crc32
from kdkit.config import BuildConfig
from kdkit.data import ReplayedDataset
from kdkit.engine import ranks
from kdkit.engine.fill import fill_together
from kdkit.engine.plan import plan_cache, refuse_other
from kdkit.errors import CacheError
from kdkit.teachers import Teacher

_SHARDS_REPLAYED, _ROWS_REPLAYED = 16, 4  # of the sealed shards and of each of them, when a build goes on


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
        config: codec, batch size and the like.
        device: where the teacher runs; it is moved there.
        show_progress: whether progress is shown on standard error, by rank 0.

    Raises:
        CacheMismatchError: what is at `path` was made with something else; names the field and both values.
        CacheLockedError: another process is building it.
        NonFiniteOutputError: the teacher said NaN or infinity, or what the codec cannot hold; names samples.
        CacheError: the folder cannot be written, or the disk is full.
    """
    config = config or BuildConfig()
    dataset = dataset.for_teacher()
    path = Path(path)
    begun = time.monotonic()
    teacher = teacher.to(torch.device(device))
    folder = parts_folder(path)
    with ExitStack() as held:

        def begin() -> Parts | None:
            """On rank 0: takes the lock and finds out what is to do; None where all is done."""
            if path.is_file():
                refuse_other(path, CachedTeacher(path).metadata, teacher, dataset, config)
                _remove_remains(folder)
                return None
            check_writable(path)
            durable.make_folder(folder)
            held.enter_context(writer_lock(folder))
            return _resume_or_start(path, teacher, dataset, config, device)

        parts = ranks.on_rank_zero(begin)
        if parts is None:
            return _report(path, images_built=0, begun=begun)
        missing = ranks.on_rank_zero(parts.missing)
        images_built = fill_together(parts, missing, teacher, dataset, config, device, show_progress=show_progress)
        if config.pack:
            build = {"seconds": round(time.monotonic() - begun, 3), "images": images_built, "device": str(device)}
            ranks.on_rank_zero(lambda: pack_parts(parts, path, json.dumps(build)))
    return _report(path if config.pack else folder, images_built=images_built, begun=begun)


def pack_cache(path: str | Path) -> Path:
    """Packs the finished shards in `path`.parts into one file at `path`, and returns that.

    Raises:
        CacheNotFoundError: there are no shards.
        CacheIncompleteError: some are missing.
        CacheLockedError: they are being written.
    """
    path = Path(path)
    folder = parts_folder(path)
    parts = Parts.open(folder)
    with writer_lock(folder):
        pack_parts(parts, path)
    return path


def check_writable(path: str | Path) -> None:
    """Refuses an output folder that cannot be written, before any work is done.

    Raises:
        CacheError: the folder of `path` cannot be made or written.
    """
    path = Path(path)
    if path.is_dir():
        raise CacheError(f"no cache can be written at {str(path)!r}: it is a folder; name a file, such as teacher.h5")
    if parts_folder(path).is_file():
        raise CacheError(f"no cache can be written at {str(path)!r}: {str(parts_folder(path))!r} is in the way")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.probe(path.parent)
    except OSError as error:
        raise CacheError(f"no cache can be written at {str(path)!r}: {error.strerror}") from error


def _remove_remains(folder: Path) -> None:
    """Removes shards whose packing died between renaming the file and removing them; leaves what cannot be removed."""
    if folder.is_dir():
        with suppress(CacheError, OSError), writer_lock(folder):
            durable.remove_folder(folder)


def _resume_or_start(
    path: Path, teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig, device: torch.device | str
) -> Parts:
    """The parts of a build that was stopped, or those of a new one."""
    folder = parts_folder(path)
    durable.remove_leftovers(folder)
    durable.remove_leftovers(path.parent, path.name)
    if (folder / INDEX_NAME).is_file():
        parts = Parts.open(folder)
        refuse_other(folder, parts.metadata, teacher, dataset, config)
        _refuse_other_pixels(parts, dataset)
        return parts
    return Parts.create(folder, *plan_cache(teacher, dataset, config, device))


def _refuse_other_pixels(parts: Parts, dataset: ReplayedDataset) -> None:
    """Replays some rows of the sealed shards: a build must not go on with other images or another library."""
    sealed = [shard for shard in parts.metadata.shards() if parts.is_sealed(shard)]
    for shard in sealed[:: max(1, len(sealed) // _SHARDS_REPLAYED)]:
        hashes = {shard.view: shard_pixel_crc32(parts.shard_path(shard), shard)}
        made_with = parts.metadata.dataset.get("versions") or {}
        origin = f"the cache at {str(parts.folder)!r}"
        check_pixels(dataset, np.arange(len(dataset)), hashes, made_with, origin, _ROWS_REPLAYED)


def _report(path: Path, *, images_built: int, begun: float) -> BuildReport:
    cache = CachedTeacher(path)
    return BuildReport(path, cache.num_rows, cache.num_views, cache.num_bytes, images_built, time.monotonic() - begun)
