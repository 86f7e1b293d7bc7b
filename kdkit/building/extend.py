"""Extending a cache: the teacher is asked about further views of the samples that it has."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from kdkit.building.build import BuildReport, build_record, report_on
from kdkit.building.config import BuildConfig
from kdkit.building.plan import VIEWS_FIELD, as_built, check_same_build
from kdkit.building.resume import check_same_pixels, check_writable, remove_remains
from kdkit.building.shards import fill_together
from kdkit.building.teacher import with_streams
from kdkit.cache.extension import Extension
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.format.metadata import CacheMetadata
from kdkit.cache.pixels import check_pixels, checked_views
from kdkit.cache.reader import CachedTeacher
from kdkit.cache.shards.folder import INDEX_NAME
from kdkit.cache.shards.lock import writer_lock
from kdkit.cache.write_errors import cache_write_errors
from kdkit.data import ReplayedDataset
from kdkit.errors import CacheLockedError, CacheMismatchError
from kdkit.runtime import distributed, files
from kdkit.teachers import Teacher


def extend_cache(
    teacher: Teacher,
    dataset: ReplayedDataset,
    path: str | Path,
    *,
    batch_size: int = BuildConfig.batch_size,
    num_workers: int | Literal["auto"] = BuildConfig.num_workers,
    device: torch.device | str = "cpu",
    allow_mismatch: Collection[str] = (),
    show_progress: bool = False,
) -> BuildReport:
    """Adds views to a finished cache, packed or in parts, until it has as many as the dataset's recipe.

    Codec and what it learnt, streams and the length of shards stay the cache's. Built with the same batch size, the
    extended cache is, byte for byte, what a build of all views at once would have been, but for the build record. Until
    all further views are sealed the cache stays as it was; then it is replaced in one step. An extension that was
    stopped goes on when it is called again, also on other ranks, with another batch size or to more views.

    Args:
        teacher: who made the cache.
        dataset: what it was made from, in the same order; its recipe has the number of views that is wanted.
        path: the packed file, the parts folder, or the path that it would be packed to.
        batch_size: images that the teacher is given at once.
        num_workers: processes that load and augment images.
        device: where the teacher runs; it is moved there.
        allow_mismatch: fields, as an error names them, in which this run may differ from the cache.
        show_progress: whether progress is shown on standard error, by rank 0.

    Raises:
        CacheMismatchError: the cache was made with something else, or has more views; names the field and both values.
        CacheIncompleteError: its build has not finished.
        CacheLockedError: another process is writing it.
        NonFiniteOutputError: the teacher said NaN or infinity, or what the codec cannot hold; names samples.
        CacheError: the folder cannot be written, or the disk is full.
    """
    begun = time.monotonic()
    teacher = teacher.to(torch.device(device))
    dataset = as_built(dataset)
    with ExitStack() as held:

        def begin() -> tuple[Path, Extension | None, BuildConfig]:
            """On rank 0: compares, takes the lock and finds out what is to do; None where all is done."""
            cache = CachedTeacher(Path(path))
            config = _config_of(cache.metadata, batch_size, num_workers)
            _check_same_build(cache, teacher, dataset, config, allow_mismatch)
            if cache.num_views == dataset.recipe.num_views:
                if cache.path.is_file():
                    remove_remains(cache.path, cache.num_views)
                return cache.path, None, config
            folder = Extension.folder_of(cache.path)
            check_writable(cache.path if cache.path.is_file() else folder / INDEX_NAME)
            with cache_write_errors():
                files.make_folder(folder)
            held.enter_context(writer_lock(folder))
            if CachedTeacher(cache.path).num_views != cache.num_views:
                raise CacheLockedError(f"the cache {str(cache.path)!r} was just extended by another process: run again")
            files.remove_leftovers(folder)
            growth = Extension.begin(cache.path, cache.metadata, dataset.recipe.num_views)
            check_same_pixels(growth.parts, dataset)
            return cache.path, growth, config

        place, growth, config = distributed.on_rank_zero(begin)
        if growth is None:
            return report_on(place, images_built=0, begun=begun)
        missing = distributed.on_rank_zero(growth.missing)
        asked = with_streams(teacher, config.streams)
        images = fill_together(growth.parts, missing, asked, dataset, config, device, show_progress=show_progress)
        record = build_record(begun, images, device)
        distributed.on_rank_zero(lambda: growth.finish(record))
    return report_on(place, images_built=images, begun=begun)


def _check_same_build(
    cache: CachedTeacher, teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig, allow: Collection[str]
) -> None:
    """As a resumed build does; only the number of views may be greater than the cache's."""
    wanted = dataset.recipe.num_views
    check_same_build(cache.path, cache.metadata.with_views(wanted), teacher, dataset, config, allow)
    origin = f"the cache {str(cache.path)!r}"
    if wanted < cache.num_views:
        raise CacheMismatchError(
            f"{origin} was made with {VIEWS_FIELD} = {cache.num_views}, this run has {wanted}: extend it to more, or "
            "train on fewer as it is"
        )
    hashes = {view: cache.pixel_crc32(view) for view in checked_views(cache.num_views)}
    check_pixels(dataset, np.arange(len(dataset)), hashes, cache.metadata.dataset.get("versions") or {}, origin)


def _config_of(metadata: CacheMetadata, batch_size: int, num_workers: int | Literal["auto"]) -> BuildConfig:
    """The configuration by which the cache was built, as far as it changes what the cache holds."""
    codecs = {stream: dict(described["codec"]) for stream, described in metadata.streams.items()}
    logits = codecs.pop(LOGITS, {})
    logits.pop("num_classes", None)
    return BuildConfig(
        streams=tuple(metadata.streams),
        codec=logits.pop("name", None),
        codec_options=logits,
        feature_codec=next((codec["name"] for codec in codecs.values()), BuildConfig.feature_codec),
        batch_size=batch_size,
        num_workers=num_workers,
    )
