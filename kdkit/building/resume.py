"""What is there already when a build begins: nothing, a build to go on with, or something in its way."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from kdkit.building.config import BuildConfig
from kdkit.building.plan import check_same_build, plan_cache
from kdkit.cache.extension import is_extending
from kdkit.cache.lazy_arrays import shard_pixels
from kdkit.cache.pixels import check_pixels
from kdkit.cache.shards.folder import INDEX_NAME, ShardFolder, shard_folder
from kdkit.cache.shards.lock import writer_lock
from kdkit.data import ReplayedDataset
from kdkit.errors import CacheError
from kdkit.runtime import files
from kdkit.teachers import Teacher

_SHARDS_REPLAYED, _ROWS_REPLAYED = 16, 4  # of the sealed shards and of each of them, when a build goes on


def check_writable(path: str | Path) -> None:
    """Refuses an output folder that cannot be written, before any work is done.

    Raises:
        CacheError: the folder of `path` cannot be made or written.
    """
    path = Path(path)
    if path.is_dir():
        raise CacheError(f"no cache can be written at {str(path)!r}: it is a folder; name a file, such as teacher.h5")
    if shard_folder(path).is_file():
        raise CacheError(f"no cache can be written at {str(path)!r}: {str(shard_folder(path))!r} is in the way")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.check_writable(path.parent)
    except OSError as error:
        raise CacheError(f"no cache can be written at {str(path)!r}: {error.strerror}") from error


def remove_remains(path: Path, num_views: int) -> None:
    """Removes what packing the cache at `path` left if it died before the end; what cannot be removed is left.

    The shards of an extension under way, which count more than these views, stay.
    """
    folder = shard_folder(path)
    if folder.is_dir():
        with suppress(CacheError, OSError), writer_lock(folder):
            if not is_extending(path, num_views):
                files.remove_folder(folder)


def resume_or_start(
    path: Path,
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
    allow: Collection[str],
) -> ShardFolder:
    """The parts of a build that was stopped, or those of a new one."""
    folder = shard_folder(path)
    files.remove_leftovers(folder)
    files.remove_leftovers(path.parent, path.name)
    if (folder / INDEX_NAME).is_file():
        parts = ShardFolder.open(folder)
        check_same_build(folder, parts.metadata, teacher, dataset, config, allow)
        check_same_pixels(parts, dataset)
        return parts
    ShardFolder.remove_orphan_shards(folder)
    return ShardFolder.create(folder, *plan_cache(teacher, dataset, config, device))


def check_same_pixels(parts: ShardFolder, dataset: ReplayedDataset) -> None:
    """Replays some rows of the sealed shards: a build must not go on with other images or another library."""
    sealed = [shard for shard in parts.metadata.shards() if parts.is_sealed(shard)]
    for shard in sealed[:: max(1, len(sealed) // _SHARDS_REPLAYED)]:
        hashes = {shard.view: shard_pixels(parts.shard_path(shard), shard)}
        made_with = parts.metadata.dataset.get("versions") or {}
        origin = f"the cache at {str(parts.folder)!r}"
        check_pixels(dataset, np.arange(len(dataset)), hashes, made_with, origin, _ROWS_REPLAYED)
