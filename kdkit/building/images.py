"""Adding images to a finished cache: the teacher runs on the new ones alone, and the old rows keep their bytes.

The new images are built as a cache of their own beside the first, FILE.more, in its fitted codecs; then both become one
new file, which replaces the first in one step. Each of the two resumes where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdkit.building import in_place
from kdkit.building.build import BuildReport, fill_and_finish
from kdkit.building.config import BuildConfig
from kdkit.building.copies import warn_of_copies
from kdkit.building.merge import check_made_alike, report_on
from kdkit.building.parts import check_stands_alone
from kdkit.building.piece import Piece
from kdkit.building.plan import BuildPlan
from kdkit.building.rewrite import Rewrite
from kdkit.building.teacher import with_streams
from kdkit.building.unreadable import leave_out_unreadable, listing_unreadable
from kdkit.cache import CachedTeacher, Codec
from kdkit.cache.codecs import RowCodec
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.matching import check_class_names, composed
from kdkit.cache.shards.folder import shard_folder
from kdkit.cache.writer import CacheWriter
from kdkit.data import ReplayedDataset
from kdkit.errors import CacheMismatchError
from kdkit.runtime import distributed
from kdkit.runtime.compare import check_match
from kdkit.runtime.progress import progress
from kdkit.teachers import Teacher

_ALL_CLASSES = "give the images of all classes, the old ones and the new ones"


@dataclass(frozen=True)
class _MorePlan(BuildPlan):
    """The build of further images, in the codecs that were fitted to those of the cache."""

    codecs: Mapping[str, RowCodec] = field(default_factory=dict)

    def choose_codec(self) -> Codec | None:
        """The cache's codec of the logits; None without logits."""
        codec = self.codecs.get(LOGITS)
        assert codec is None or isinstance(codec, Codec)
        return codec

    def feature_codecs(self) -> dict[str, RowCodec]:
        """The cache's codecs of features."""
        return {stream: codec for stream, codec in self.codecs.items() if stream != LOGITS}


def add_images(
    teacher: Teacher,
    more: ReplayedDataset,
    cache: CachedTeacher,
    config: BuildConfig,
    *,
    device: torch.device | str = "cpu",
    allow_mismatch: Collection[str] = (),
    show_progress: bool = False,
) -> BuildReport:
    """Adds the images `more`, none of which the packed cache holds, in all of its views; called on all ranks.

    Args:
        teacher: the model that the cache was made with, its classes in the cache's order.
        more: the images to add, as the teacher sees them.
        cache: the cache.
        config: the configuration by which the cache was built, and what to do about unreadable images.
        device, allow_mismatch, show_progress: as for `extend_cache`.

    Raises:
        CacheMismatchError, CacheLockedError, NonFiniteOutputError, CacheError: as for `extend_cache`.
    """
    begun = time.monotonic()
    teacher = with_streams(teacher.to(torch.device(device)), config.streams)
    place = cache.path.with_name(cache.path.name + in_place.MORE)
    more = leave_out_unreadable(more, place, config, show_progress=show_progress)
    shown: dict[str, Any] = {"show_progress": show_progress, "codecs": cache.codecs}
    plan = _MorePlan(teacher, more, replace(config, pack=True), device, allow_mismatch, **shown)
    with ExitStack() as held:

        def begin() -> CacheWriter:
            _check_same_teacher(cache, plan)
            with listing_unreadable(plan, lambda: range(len(more)), show_progress=show_progress):
                return held.enter_context(_create(place, plan, cache))

        writer = distributed.on_rank_zero(begin)
        images = fill_and_finish(writer, plan, begun, show_progress=show_progress).images_built
    distributed.on_rank_zero(lambda: _join(cache, place, allow_mismatch, show_progress=show_progress))
    return report_on(cache.path, images, begun)


def check_can_grow(cache: CachedTeacher) -> None:
    """Checks that images can be added, before any work is done.

    Raises:
        CacheError: the cache is a folder of shards, or is being extended to more views.
        CacheMismatchError: its views are mixed.
    """
    in_place.check_replaceable(cache)
    check_stands_alone(cache, "extended by images")


def _check_same_teacher(cache: CachedTeacher, plan: BuildPlan) -> None:
    """Checks what the cache was made with; the pixels of its own images are compared by `match`."""
    shown, allow = f"the cache {str(cache.path)!r}", plan.allow_mismatch
    check_match("teacher", cache.teacher, plan.teacher.fingerprint(), shown, allow)
    check_match("recipe", cache.recipe.to_dict(), plan.dataset.recipe.to_dict(), shown, allow)
    names = plan.dataset.class_names
    if not (names is None and plan.dataset.is_unlabelled):
        check_class_names(composed(cache.class_names), composed(names), shown, allow, advice=_ALL_CLASSES)


def _create(place: Path, plan: BuildPlan, cache: CachedTeacher) -> CacheWriter:
    """The writer of the further images, which resumes a stopped run on the same ones."""
    try:
        return CacheWriter.create(place, plan)
    except CacheMismatchError as error:
        remains = place if place.is_file() else shard_folder(place)
        raise CacheMismatchError(
            f"{str(remains)!r} holds other images for {str(cache.path)!r} than this run adds, from a run that was "
            f"stopped ({error}): give the images of that run, or delete it"
        ) from error


def _join(cache: CachedTeacher, place: Path, allow_mismatch: Collection[str], *, show_progress: bool) -> None:
    """Makes the cache one of both, in one step, and removes the other one."""
    more = CachedTeacher(place)
    check_made_alike(cache, more, allow_mismatch)
    warn_of_copies(cache, more)
    pieces = [Piece(cache, np.arange(cache.num_rows)), Piece(more, np.arange(more.num_rows))]
    rewrite = Rewrite(pieces)
    total = rewrite.num_views * (cache.num_rows + more.num_rows)
    with progress(f"joining {cache.path}", total, "rows", enabled=show_progress) as advance:
        in_place.replace(cache, rewrite, {"extended": cache.identity, "images": more.num_rows}, advance)
