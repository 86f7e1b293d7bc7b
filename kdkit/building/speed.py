"""Speeds of the parts of a build on this machine, each measured alone: decode, transform, teacher, encode, disk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdkit.building.teacher import run_teacher
from kdkit.cache.codecs import RowCodec
from kdkit.cache.encoding import encode_in_parts
from kdkit.data import ReplayedDataset, ReplayLoader
from kdkit.data.batch import collate
from kdkit.data.sampler import RangeSampler
from kdkit.data.views.seed import view_seed
from kdkit.teachers import Teacher

_IMAGES = 32
_SECONDS = 2.0  # of loading at most
_DISK_BYTES = 32 << 20


@dataclass(frozen=True)
class Speeds:
    """What each part of a build takes, measured in one process, one part at a time."""

    decode: float
    """Seconds to read and decode an image."""
    transform: float
    """Seconds to make a view of a decoded image, and of its partner where views are mixed."""
    teacher: float
    """Seconds to run the teacher on a view, in batches of the build."""
    encode: float
    """Seconds to encode a row of all streams."""
    write: float
    """Bytes per second written durably to the working folder."""
    read: float
    """Bytes per second read back from there, past the page cache where the system allows it."""

    def per_view(self, views_per_decode: int, num_workers: int, row_bytes: int) -> dict[str, float]:
        """Seconds per view of the parts that run at the same time: loading, teacher, encoding, disk.

        Args:
            views_per_decode: views of an image that one decode serves.
            num_workers: processes that load; 0 loads in the teacher's process.
            row_bytes: bytes of a row.
        """
        loading = (self.decode / views_per_decode + self.transform) / max(1, num_workers)
        return {
            "loading": loading + (self.teacher if num_workers == 0 and loading >= self.teacher else 0.0),
            "the teacher": self.teacher + (loading if num_workers == 0 and loading < self.teacher else 0.0),
            "encoding": self.encode,
            "the disk": row_bytes / self.write,
        }


def measure_speeds(
    teacher: Teacher,
    dataset: ReplayedDataset,
    codecs: Mapping[str, RowCodec],
    batch_size: int,
    device: torch.device | str,
) -> Speeds:
    """Measures loading on up to 32 images, the teacher on a batch of them, and the disk with 32 MiB.

    Args:
        teacher: runs on `device`, and has run before.
        dataset: samples and recipe, as the teacher sees them.
        codecs: stream -> its codec, fitted.
        batch_size: images per forward pass of the teacher.
        device: where the teacher runs.
    """
    decode, transform, samples = _time_loading(dataset)
    samples = (samples * -(-batch_size // len(samples)))[:batch_size]
    loader = ReplayLoader(dataset, RangeSampler([], batch_size), teacher.input_normalization, device=device)
    pixels = collate(samples)
    begun = time.perf_counter()
    outputs = run_teacher(teacher, loader, pixels, codecs)
    for values in outputs.values():
        values.flatten()[:1].cpu()  # waits for the device
    ran = time.perf_counter()
    for stream, values in outputs.items():
        encode_in_parts(codecs[stream], values).cpu()
    encoded = time.perf_counter()
    write, read = _disk_speeds()
    return Speeds(decode, transform, (ran - begun) / len(samples), (encoded - ran) / len(samples), write, read)


def _time_loading(dataset: ReplayedDataset) -> tuple[float, float, list[Any]]:
    """Seconds per image of decoding and of transforming, and the samples: random ones, as folders are sorted."""
    generator = torch.Generator().manual_seed(view_seed(dataset.recipe.seed, "speed", 0) >> 1)
    rows = torch.randperm(len(dataset), generator=generator)[:_IMAGES].tolist()
    dataset[rows[0], 0]  # loads libraries
    decode, whole, samples = 0.0, 0.0, []
    for row in rows:
        begun = time.perf_counter()
        dataset.source[row]
        decoded = time.perf_counter()
        samples += dataset.__getitems__([(row, 0)])
        decode, whole = decode + decoded - begun, whole + time.perf_counter() - decoded
        if decode + whole > _SECONDS:
            break
    return decode / len(samples), max(0.0, whole - decode) / len(samples), samples


def _disk_speeds() -> tuple[float, float]:
    """Bytes per second written to and read from the working folder, or the temporary one if that is read-only."""
    folder = Path.cwd() if os.access(Path.cwd(), os.W_OK) else None
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder, prefix=".kdkit-speed-") as file:
        begun = time.perf_counter()
        for _ in range(_DISK_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        while file.read(len(block)):
            pass
        done = time.perf_counter()
    return _DISK_BYTES / (written - begun), _DISK_BYTES / (done - written)
