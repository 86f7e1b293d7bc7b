"""Extending a cache: the teacher is run on further views of the samples that it holds, and on further samples."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kdkit.building.build import BuildReport, fill_and_finish
from kdkit.building.config import BuildConfig, BuildLoadingConfig
from kdkit.building.images import add_images, check_can_grow
from kdkit.building.in_place import tidy
from kdkit.building.parts import part_of, split_images
from kdkit.building.plan import BuildPlan, as_built
from kdkit.building.teacher import for_dataset, placed, with_streams
from kdkit.building.unreadable import recorded_absent
from kdkit.cache.codecs import CompactFeature
from kdkit.cache.extension import check_adds_views
from kdkit.cache.format.constants import LOGITS, RECORDS
from kdkit.cache.format.metadata import CacheMetadata
from kdkit.cache.pixels import check_pixels, checked_views
from kdkit.cache.reader import CachedTeacher
from kdkit.cache.writer import CacheWriter
from kdkit.data import ReplayedDataset, translate_worker_errors
from kdkit.data.ranks import check_same_on_ranks
from kdkit.errors import CacheMismatchError
from kdkit.runtime import distributed
from kdkit.runtime.agreement import check_same_settings
from kdkit.teachers import Teacher


@translate_worker_errors()  # torch may report a death once more, from whatever runs then
def extend_cache(
    teacher: Teacher,
    dataset: ReplayedDataset,
    path: str | Path,
    *,
    batch_size: int = BuildConfig.batch_size,
    num_workers: int | Literal["auto"] = BuildConfig.num_workers,
    memory: int = BuildConfig.memory,
    device: torch.device | str | None = None,
    unreadable: Literal["stop", "skip"] = BuildConfig.unreadable,
    allow_mismatch: Collection[str] = (),
    show_progress: bool = False,
) -> BuildReport:
    """Adds views to a finished cache until it has as many as the dataset's recipe, and the dataset's further images.

    Streams, fitted codecs and shard length stay those of the cache. Built with the same batch size, the extended cache
    is byte-identical to a build of all views at once, apart from the build record. It is replaced in one step. An
    interrupted extension resumes with the same call, even with other ranks, another batch size or more views.

    On images that a packed cache does not hold, the teacher runs in all views; the rows that it holds keep their bytes,
    and the codecs the fit to its first images. Images that the dataset lacks stay, unless views are added.

    Args:
        teacher: the model that the cache was made with.
        dataset: the samples that the cache was made from and further ones; its recipe has the new number of views.
        path: the packed file, the folder of shards, or the path that it would be packed to.
        batch_size, num_workers: images per forward pass of the teacher, and processes that load and augment them.
        memory, unreadable: as in BuildConfig; of images that cannot be read, "skip" leaves out the further ones.
        device: where the teacher runs; it is moved there. None leaves it where it is.
        allow_mismatch: fields, named as in the error, in which this run may differ from the cache.
        show_progress: whether progress is shown on standard error, by rank 0.

    Raises:
        CacheMismatchError: the cache was made with other settings or elsewhere, or has more views; names what differs.
        DatasetError, ConfigError: images cannot be read (UnreadableError), or another rank has other data or teachers.
        CacheIncompleteError, CacheLockedError: its build has not finished, or another process is writing it.
        NonFiniteOutputError: an output is NaN, infinite, or beyond what the codec can hold; names samples.
        CacheError: the folder cannot be written, or the disk is full.
    """
    cache = open_extendable(path)
    check_same_on_ranks(dataset)
    dataset = as_built(dataset).without(recorded_absent(Path(path)))
    teacher, device = placed(for_dataset(teacher, dataset, cache.codecs), device)
    check_same_settings(lambda: {"teacher": teacher.fingerprint()})
    held, more = split_images(cache, dataset)
    known = part_of(dataset, held)
    if more:
        check_can_grow(cache)
    run: dict[str, Any] = {"device": device, "allow_mismatch": allow_mismatch, "show_progress": show_progress}
    loading = BuildLoadingConfig(batch_size=batch_size, num_workers=num_workers, memory=memory)
    if not more or dataset.recipe.num_views != cache.num_views:
        report = _add_views(teacher, known, cache.path, loading, **run)
        if not more:
            distributed.on_rank_zero(lambda: tidy(cache.path))
            return report
        cache = CachedTeacher(cache.path)
    elif held:
        distributed.on_rank_zero(lambda: cache.match(known, allow_mismatch=allow_mismatch))
    config = replace(_config_of(cache.metadata, loading), unreadable=unreadable)
    return add_images(teacher, part_of(dataset, more), cache, config, **run)


def open_extendable(path: str | Path) -> CachedTeacher:
    """Opens a cache whose teacher kdkit ran, on views that it drew itself, so that there can be more of them.

    Raises:
        CacheMismatchError: the outputs or the views are from elsewhere.
    """
    cache = CachedTeacher(path)
    shown = f"the cache {str(cache.path)!r} cannot be extended"
    if not cache.metadata.has_pixels:
        raise CacheMismatchError(
            f"{shown}: its outputs were imported or written, and kdkit did not run its teacher: import or write them "
            "again, with those of all images and views"
        )
    if cache.recipe.recorded is not None:
        raise CacheMismatchError(
            f"{shown}: its views are those that another cache records: build it again, --like a cache that records all "
            "images and views"
        )
    return cache


def _add_views(
    teacher: Teacher,
    dataset: ReplayedDataset,
    path: Path,
    loading: BuildLoadingConfig,
    *,
    device: torch.device | str,
    allow_mismatch: Collection[str],
    show_progress: bool,
) -> BuildReport:
    """Adds the views that the dataset's recipe has and the cache lacks; the arguments are those of `extend_cache`."""
    begun = time.monotonic()
    with ExitStack() as held:

        def begin() -> tuple[CacheWriter, BuildConfig]:
            cache = CachedTeacher(path)
            config = _config_of(cache.metadata, loading)
            plan = BuildPlan(teacher, dataset, config, device, allow_mismatch)
            _check_same_build(cache, plan)
            writer = held.enter_context(CacheWriter.extend(cache.path, dataset.recipe.num_views))
            plan.check_same_pixels(writer)
            return writer, config

        writer, config = distributed.on_rank_zero(begin)
        plan = BuildPlan(with_streams(teacher, config.streams), dataset, config, device)
        return fill_and_finish(writer, plan, begun, show_progress=show_progress)


def _check_same_build(cache: CachedTeacher, plan: BuildPlan) -> None:
    """Checks the settings as a resumed build does; only the number of views may exceed the cache's."""
    dataset = plan.dataset
    plan.check_same(cache.metadata.with_views(dataset.recipe.num_views), cache.path)
    check_adds_views(cache.path, cache.metadata, dataset.recipe.num_views)
    hashes = {view: cache.pixel_crc32(view) for view in checked_views(cache.num_views)}
    made_with = cache.metadata.dataset.get("versions") or {}
    check_pixels(dataset, np.arange(len(dataset)), hashes, made_with, f"the cache {str(cache.path)!r}")


def _config_of(metadata: CacheMetadata, loading: BuildLoadingConfig) -> BuildConfig:
    """The configuration by which the cache was built, as far as it affects the contents of the cache."""
    described = {stream: found["codec"] for stream, found in metadata.streams.items() if stream != RECORDS}
    codecs = {stream: dict(codec) for stream, codec in described.items()}
    logits = codecs.pop(LOGITS, {})
    logits.pop("num_classes", None)
    features = {codec["name"] for codec in codecs.values()} or {BuildConfig.feature_codec}
    return BuildConfig(
        streams=tuple(described),
        codec=logits.pop("name", None),
        codec_options=logits,
        feature_codec=features.pop() if len(features) == 1 else CompactFeature.name,
        **asdict(loading),
    )
