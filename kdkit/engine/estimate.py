"""What a cache will cost, before it is built: bytes from its layout, time from a short probe."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from kdkit.cache.format import BLOCK_ROWS, hashed_rows
from kdkit.cache.keys import pack_keys
from kdkit.config import BuildConfig
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.engine.ask import ask
from kdkit.engine.build import choose_codec
from kdkit.engine.probe import fit_and_measure
from kdkit.teachers import Teacher

_LAYOUT_BYTES = 4096  # root attributes and headers of the members that every cache has
_VIEW_BYTES = 1115  # headers of a view: its group and three datasets
_PROBE_BATCHES = 4


@dataclass(frozen=True)
class Estimate:
    """What a build will take."""

    num_bytes: int
    """Bytes of the packed cache; while it is packed, twice as many are needed."""
    row_bytes: int
    """Bytes of one row of one view."""
    images: int
    """Images that the teacher will be asked about."""
    images_per_second: float
    """Speed of the probe: loading, teacher, encoding."""
    seconds: float
    """Time of the build at that speed."""
    fidelity: dict[str, float]
    """What the codec keeps of the teacher, measured on the probe."""


def estimate_cache(
    teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig | None = None, *, device: torch.device | str = "cpu"
) -> Estimate:
    """Asks the teacher about a few batches and computes the rest from the layout.

    Args:
        teacher, dataset, config, device: as for build_cache.
    """
    config = config or BuildConfig()
    teacher = teacher.to(torch.device(device))
    codec, fidelity = fit_and_measure(choose_codec(teacher, dataset, config), teacher, dataset, config, device)
    rows, views = len(dataset), dataset.recipe.num_views
    each_view = rows * codec.row_bytes + 4 * -(-rows // BLOCK_ROWS) + 4 * len(hashed_rows(0, rows)) + _VIEW_BYTES
    once = 16 * rows + pack_keys(dataset.keys).nbytes + sum(array.nbytes for array in codec.arrays.values())
    names = sum(len(name.encode()) + 3 for name in dataset.class_names or ())
    speed = _measure_speed(teacher, dataset, config, device)
    return Estimate(
        num_bytes=views * each_view + once + names + _LAYOUT_BYTES,
        row_bytes=codec.row_bytes,
        images=rows * views,
        images_per_second=speed,
        seconds=rows * views / speed,
        fidelity=fidelity,
    )


def _measure_speed(
    teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig, device: torch.device | str
) -> float:
    """Images a second over a few batches, the first of which warms up and does not count."""
    codec = choose_codec(teacher, dataset, config)
    sampler = EpochSampler(range(len(dataset)), config.batch_size)
    loader = ReplayLoader(dataset, sampler, teacher.input_normalization, device=device, num_workers=config.num_workers)
    images, begun = 0, time.perf_counter()
    for number, pixels in enumerate(loader.pixel_batches()):
        ask(teacher, codec, loader, pixels).sum().item()  # waits for the device
        if number == 0 and len(loader) > 1:
            begun = time.perf_counter()
        else:
            images += len(pixels.row)
        if number == _PROBE_BATCHES:
            break
    return images / (time.perf_counter() - begun)
