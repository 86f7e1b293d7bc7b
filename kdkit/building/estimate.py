"""The cost of a cache before it is built: bytes from its layout, time and its limit from a short probe."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kdkit.building.config import BuildConfig
from kdkit.building.fit import num_probed
from kdkit.building.groups import views_in_memory
from kdkit.building.plan import BuildPlan
from kdkit.building.speed import Speeds, measure_speeds
from kdkit.building.teacher import for_dataset, placed, run_teacher, with_streams
from kdkit.cache.codecs import RowCodec
from kdkit.cache.encoding import encode_in_parts
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader, translate_worker_errors
from kdkit.runtime.progress import progress
from kdkit.teachers import Teacher

ESTIMATE_FIT_ROWS = 2_048
"""Maximum number of rows that a codec is fitted to: an eighth of a build's, to be quick."""
_PROBE_BATCHES = 3
_PREFETCHED = 2  # batches that each of torch's workers loads ahead


@dataclass(frozen=True)
class Estimate:
    """The cost of a build."""

    num_bytes: int
    """Bytes of the packed cache; packing needs twice as many."""
    row_bytes: int
    """Bytes of one row of one view, all streams together."""
    images: int
    """Images on which the teacher will run."""
    images_per_second: float
    """Speed of the probe: loading, teacher, encoding."""
    seconds: float
    """Time of the build at that speed, with fitting and measuring codecs before it."""
    fidelity: Mapping[str, Mapping[str, float]]
    """Stream -> fidelity of its codec. A build fits to more rows, so its fidelity is usually at least as good."""
    speeds: Speeds
    """What each part takes on this machine."""
    views_per_decode: int
    """Views of an image that one decode serves in the build."""
    limit: str
    """The part that the build waits for: loading, the teacher, encoding or the disk."""
    live_epochs: float
    """Epochs of live training in which the teacher alone takes as long as the build."""


@translate_worker_errors()
def estimate_cache(
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig | None = None,
    *,
    device: torch.device | str | None = None,
    show_progress: bool = False,
) -> Estimate:
    """Runs the teacher on up to 2,560 images to fit and measure codecs, times some batches and computes the rest.

    Args:
        teacher, dataset, config, device, show_progress: as for build_cache.
    """
    config = config or BuildConfig()
    dataset = dataset.for_teacher()
    teacher = with_streams(for_dataset(teacher, dataset, config.streams), config.streams)
    teacher, device = placed(teacher, device)
    quick: dict[str, Any] = {"fit_rows": ESTIMATE_FIT_ROWS, "reads_content": False}
    plan = BuildPlan(teacher, dataset, config, device, show_progress=show_progress, **quick)
    spec = plan.make_spec()
    rows, images = len(spec.keys), len(spec.keys) * spec.num_views
    views = min(spec.num_views, views_in_memory(plan, spec.metadata))
    speed = _measure_speed(spec.codecs, teacher, dataset, config, device, views, show_progress=show_progress)
    speeds = measure_speeds(teacher, dataset, spec.codecs, min(config.batch_size, rows), device)
    parts = speeds.per_view(views, config.workers, spec.metadata.all_row_bytes)
    seconds = (images + num_probed(plan.choose_codec(), rows, config)) / speed
    return Estimate(
        num_bytes=spec.packed_bytes,
        row_bytes=spec.metadata.all_row_bytes,
        images=images,
        images_per_second=speed,
        seconds=seconds,
        fidelity=spec.fidelity,
        speeds=speeds,
        views_per_decode=views,
        limit=max(parts, key=lambda part: parts[part]),
        live_epochs=seconds / (rows * speeds.teacher),
    )


def describe_break_even(estimate: Estimate, num_views: int) -> str:
    """From which student on a cache is cheaper than the live teacher, in a sentence.

    Args:
        estimate: the cost of the build.
        num_views: number of views V of the cache.
    """
    epochs, students = estimate.live_epochs, math.floor(estimate.live_epochs / num_views) + 1
    return (
        f"the build takes as long as the live teacher in {epochs:,.1f} epochs: a cache is cheaper from student "
        f"{students} on if each trains for {num_views} epochs, from the first one if it trains for more than "
        f"{math.ceil(epochs):,}"
    )


def _measure_speed(
    codecs: Mapping[str, RowCodec],
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
    views: int,
    *,
    show_progress: bool,
) -> float:
    """Images per second over a few batches, in which one decode serves as many views as in the build.

    Images that workers loaded before the first batch cost no time, so they are left out if there are others.
    """
    sampler = EpochSampler(
        range(len(dataset)), config.batch_size, num_views=dataset.recipe.num_views, views_per_decode=views
    )
    loader = ReplayLoader(dataset, sampler, teacher.input_normalization, device=device, num_workers=config.workers)
    ahead = 1 + _PREFETCHED * config.workers
    counted = max(_PROBE_BATCHES, _PREFETCHED * config.workers)
    if len(loader) < ahead + counted:
        ahead = 0  # of few images all are loaded ahead: the time that workers take to start counts too, to be cautious
    images, begun = 0, time.perf_counter()
    batches = min(ahead + counted, len(loader))
    with progress("timing some batches of the build", batches, "batches", enabled=show_progress, brief=True) as advance:
        for number, pixels in enumerate(loader.pixel_batches()):
            for stream, values in run_teacher(teacher, loader, pixels, codecs).items():
                encode_in_parts(codecs[stream], values).cpu()  # waits for the device
            if number < ahead:
                images, begun = 0, time.perf_counter()
            else:
                images += len(pixels.row)
            advance(1)
            if number == ahead + counted - 1:
                break
    return images / (time.perf_counter() - begun)
