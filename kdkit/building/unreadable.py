"""Images of a build that cannot be read: all of them are found and listed, or left out and recorded in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from kdkit.building.config import BuildConfig
from kdkit.building.plan import BuildPlan
from kdkit.building.scan import find_unreadable
from kdkit.cache.file import CacheFile
from kdkit.cache.format.keys import list_keys
from kdkit.cache.format.metadata import Shard
from kdkit.cache.lazy_arrays import stored_absent
from kdkit.cache.shards.folder import INDEX_NAME, ShardFolder, shard_folder
from kdkit.cache.writer import CacheWriter
from kdkit.data import ReplayedDataset
from kdkit.errors import DatasetError, UnreadableError
from kdkit.runtime import distributed

_LISTED = 100  # images that an error names; its `samples` hold all


def leave_out_unreadable(
    dataset: ReplayedDataset, path: Path, config: BuildConfig, *, show_progress: bool
) -> ReplayedDataset:
    """The dataset of a build, without the images that the cache at `path` records as unreadable.

    A new cache records none, or with unreadable="skip" those that cannot be read now: each image is read once. Every
    rank calls this; rank 0 reads.

    Raises:
        DatasetError: no image can be read.
    """

    def choose() -> list[str]:
        if _is_begun(path) or config.unreadable == "stop":
            return recorded_absent(path)
        found = find_unreadable(dataset, range(len(dataset)), config.workers, show_progress=show_progress)
        if len(found) == len(dataset):
            raise DatasetError(f"none of {len(dataset)} images can be read, the first: {next(iter(found.values()))}")
        return list(found)

    return dataset.without(distributed.on_rank_zero(choose))


def recorded_absent(path: Path) -> list[str]:
    """Keys of the images that the cache at `path`, finished or not, records as unreadable; none without a cache."""
    if _is_file(path) or (path / INDEX_NAME).is_file():
        return list(CacheFile(path).absent_keys)
    folder = shard_folder(path)
    return stored_absent(folder, ShardFolder.open(folder).metadata) if _is_begun(path) else []


@contextmanager
def listing_unreadable(plan: BuildPlan, rows: Callable[[], Sequence[int]], *, show_progress: bool) -> Iterator[None]:
    """Within the context, the error of an unreadable image names all unreadable images.

    Args:
        plan: the build.
        rows: gives the dataset rows that may hold further unreadable images; called only for the error.
        show_progress: whether the search, and each image that it finds, is shown on standard error.

    Raises:
        UnreadableError: an image cannot be read; names all such images of `rows`.
    """
    try:
        yield
    except UnreadableError:
        found = find_unreadable(plan.dataset, rows(), plan.config.workers, show_progress=show_progress)
        if not found:  # it can be read, but not be shown in one of its views
            raise
    else:
        return
    raise _listed(found, plan)  # not `from error`, whose traceback would keep the loader's workers alive


def _listed(found: Mapping[str, str], plan: BuildPlan) -> UnreadableError:
    keys = ", ".join(map(repr, found)) if len(found) <= _LISTED else list_keys(list(found))
    advice = "repair or remove them, or start a cache with --unreadable skip, which leaves them out"
    if plan.config.unreadable == "skip":
        advice = (
            "it was begun when they could be read, or without --unreadable skip: repair them, or start another cache"
        )
    error = UnreadableError(
        f"{len(found)} of {len(plan.dataset)} images cannot be read: {keys} (the first: {next(iter(found.values()))}): "
        f"{advice}"
    )
    error.samples = found
    return error


def rows_left(writer: CacheWriter, shards: Sequence[Shard]) -> list[int]:
    """Dataset rows of the unsealed `shards`, without the rows that were read for a sealed shard of another view."""
    left = {row for shard in shards if not writer.is_sealed(shard) for row in range(shard.start, shard.stop)}
    for shard in writer.sealed():
        left.difference_update(range(shard.start, shard.stop))
    return sorted(left)


def _is_begun(path: Path) -> bool:
    return _is_file(path) or (shard_folder(path) / INDEX_NAME).is_file()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, of which the writer says more
        return False
