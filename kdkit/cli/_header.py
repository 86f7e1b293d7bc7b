"""The description of a build before it, and of its cache after it."""

from __future__ import annotations

from pathlib import Path

import torch

from kdkit.building.config import BuildConfig
from kdkit.cache import open_cache
from kdkit.cache.summary import describe_fidelity
from kdkit.data import ReplayedDataset
from kdkit.runtime import distributed
from kdkit.teachers import Teacher


def describe_build(
    teacher: Teacher, dataset: ReplayedDataset, data: str, config: BuildConfig, device: torch.device, output: str
) -> dict[str, str]:
    """Label -> text, in reading order: teacher, images, views, device, output."""
    parameters = sum(parameter.numel() for parameter in teacher.parameters())
    processes = "" if distributed.world_size() == 1 else f", {distributed.world_size()} processes"
    recipe = dataset.recipe
    return {
        "teacher": f"{teacher.name}, {parameters / 1e6:.1f} M parameters",
        "images": f"{len(dataset):,} of {teacher.num_classes or 'unknown'} classes, {data}",
        "views": f"{recipe.num_views} per image, {recipe.teacher_size or recipe.size} pixels",
        "streams": ", ".join(config.streams),
        "device": f"{device}, {config.workers} loader workers{processes}, batches of {config.batch_size} images",
        "output": output,
    }


def describe_cache(path: Path) -> dict[str, str]:
    """Label -> text: the bytes per row of a finished cache, and what its codecs keep of the teacher."""
    cache = open_cache(path)
    codecs = ", ".join(f"{stream} {codec.name} {codec.row_bytes}" for stream, codec in cache.codecs.items())
    fidelity = cache.metadata.fidelity.items()
    return {"bytes/row": f"{cache.metadata.all_row_bytes} ({codecs})"} | {
        f"{stream} kept": describe_fidelity(values) for stream, values in fidelity
    }
