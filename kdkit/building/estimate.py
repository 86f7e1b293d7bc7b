"""What a cache will cost, before it is built: bytes from its layout, time from a short probe."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kdkit.building.config import BuildConfig
from kdkit.building.fit import num_looked_at
from kdkit.building.plan import choose_codec, plan_cache
from kdkit.building.teacher import run_teacher, with_streams
from kdkit.cache.codecs import RowCodec, codec_from_dict
from kdkit.cache.format.constants import codec_array_name
from kdkit.cache.format.metadata import CacheMetadata
from kdkit.cache.hdf5.size import packed_num_bytes
from kdkit.cache.hdf5.write import Array
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader, translate_worker_errors
from kdkit.teachers import Teacher

ESTIMATE_FIT_ROWS = 2_048
"""Rows that a codec is fitted to, at most: an eighth of a build's, to have an answer soon."""
_PROBE_BATCHES = 4
_PREFETCHED = 2  # batches that each of torch's workers loads ahead


@dataclass(frozen=True)
class Estimate:
    """What a build will take."""

    num_bytes: int
    """Bytes of the packed cache; while it is packed, twice as many are needed."""
    row_bytes: int
    """Bytes of one row of one view, all streams together."""
    images: int
    """Images that the teacher will be asked about."""
    images_per_second: float
    """Speed of the probe: loading, teacher, encoding."""
    seconds: float
    """Time of the build at that speed, with the look at the teacher before it."""
    fidelity: Mapping[str, Mapping[str, float]]
    """Stream -> what its codec keeps of the teacher; fitted to more, that of a build keeps no less, as a rule."""


@translate_worker_errors()
def estimate_cache(
    teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig | None = None, *, device: torch.device | str = "cpu"
) -> Estimate:
    """Asks the teacher about up to 2,560 images to fit and measure codecs, and times some batches; computes the rest.

    Args:
        teacher, dataset, config, device: as for build_cache.
    """
    config = config or BuildConfig()
    dataset = dataset.for_teacher()
    teacher = with_streams(teacher, config.streams).to(torch.device(device))
    metadata, arrays = plan_cache(teacher, dataset, config, device, fit_rows=ESTIMATE_FIT_ROWS)
    images = metadata.num_rows * metadata.num_views
    codecs = {stream: _codec_of(stream, metadata, arrays) for stream in metadata.streams}
    speed = _measure_speed(codecs, teacher, dataset, config, device)
    return Estimate(
        num_bytes=packed_num_bytes(metadata, arrays),
        row_bytes=metadata.all_row_bytes,
        images=images,
        images_per_second=speed,
        seconds=(images + num_looked_at(choose_codec(teacher, dataset, config), metadata.num_rows)) / speed,
        fidelity=metadata.fidelity,
    )


def _codec_of(stream: str, metadata: CacheMetadata, arrays: Mapping[str, Array]) -> RowCodec:
    """A stream's codec, fitted as the plan says."""
    prefix = codec_array_name(stream, "")
    read_array = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return codec_from_dict(stream, metadata.streams[stream]["codec"]).with_arrays(read_array)


def _measure_speed(
    codecs: Mapping[str, RowCodec],
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
) -> float:
    """Images a second over a few batches.

    Those that workers have loaded by the time of the first do not count, where there are others: they cost no time.
    """
    sampler = EpochSampler(range(len(dataset)), config.batch_size)
    loader = ReplayLoader(dataset, sampler, teacher.input_normalization, device=device, num_workers=config.workers)
    ahead = 1 + _PREFETCHED * config.workers
    counted = max(_PROBE_BATCHES, _PREFETCHED * config.workers)
    if len(loader) < ahead + counted:
        ahead = 0  # of few images all are loaded ahead: the time that workers take to start counts too, to be cautious
    images, begun = 0, time.perf_counter()
    for number, pixels in enumerate(loader.pixel_batches()):
        for stream, values in run_teacher(teacher, loader, pixels, codecs).items():
            codecs[stream].encode(values).cpu()  # waits for the device
        if number < ahead:
            images, begun = 0, time.perf_counter()
        else:
            images += len(pixels.row)
        if number == ahead + counted - 1:
            break
    return images / (time.perf_counter() - begun)
