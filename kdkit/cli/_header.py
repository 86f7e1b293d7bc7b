"""The description of a build before it, and of its cache after it."""

from __future__ import annotations

from pathlib import Path

import torch

from kdkit.building.build import BuildReport
from kdkit.building.config import BuildConfig
from kdkit.building.label_agreement import LabelAgreement, label_agreement
from kdkit.cache import open_cache
from kdkit.cache.summary import describe_fidelity
from kdkit.data import ReplayedDataset
from kdkit.data.sources.left_out import describe_skipped
from kdkit.resolve import describe_teacher
from kdkit.runtime import distributed
from kdkit.runtime.hardware import describe_device
from kdkit.teachers import Teacher, TeacherEnsemble


def describe_build(
    teacher: Teacher,
    precision: str,
    dataset: ReplayedDataset,
    data: str,
    config: BuildConfig,
    device: torch.device,
    output: str,
) -> dict[str, str]:
    """Label -> text, in reading order: teacher and its precision, images, views, device, output."""
    members = teacher.members if isinstance(teacher, TeacherEnsemble) else (teacher,)
    parameters = sum(parameter.numel() for member in members for parameter in member.model.parameters())
    processes = "" if distributed.world_size() == 1 else f", {distributed.world_size()} processes"
    recipe = dataset.recipe
    side = recipe.teacher_size or recipe.size
    is_one = recipe.augment and recipe.num_views == 1
    same = " (a student sees the same pixels in every epoch: --views N makes N)" if is_one else ""
    sizes = {member.input_size or (side, side) for member in members}
    resized = "".join(f", resized to {height} x {width}" for height, width in sorted(sizes - {(side, side)}))
    return {
        "teacher": f"{describe_teacher(teacher)}, {parameters / 1e6:.1f} M parameters",
        "precision": f"{precision}{', compiled' if config.compile else ''}",
        "images": f"{len(dataset):,} of {teacher.num_classes or 'unknown'} classes, {data}"
        + describe_skipped(dataset.source),
        "views": f"{recipe.num_views} per image, {side} pixels{resized}{same}",
        "recipe": recipe.describe_steps(),
        "streams": ", ".join(config.streams),
        "device": f"{describe_device(device)}, {config.workers} loader workers{processes}, batches of "
        f"{config.batch_size} images",
        "output": output,
    }


def describe_built(report: BuildReport, dataset: ReplayedDataset | None = None) -> dict[str, str]:
    """Label -> text: a finished cache, its bytes per row, and what its codecs keep of the teacher.

    With the dataset, also how often the cached top-1 is the label: a teacher of other classes, sizes or normalisation
    shows here, before any student.
    """
    cache = open_cache(report.path)
    codecs = ", ".join(f"{stream} {codec.name} {codec.row_bytes}" for stream, codec in cache.codecs.items())
    built = f"{report.images_built:,} images in {report.seconds:.1f} s" if report.images_built else "it was complete"
    return {
        "cache": str(report.path),
        "holds": f"{report.num_rows:,} images x {report.num_views} views, {report.num_bytes:,} bytes",
        "bytes/row": f"{cache.metadata.all_row_bytes} ({codecs})",
        **{
            f"{stream} kept": describe_fidelity(values, multi_label=cache.is_multi_label)
            for stream, values in cache.metadata.fidelity.items()
        },
        **({} if dataset is None else describe_agreement(find_agreement(report.path, report.num_rows, dataset))),
        "built": built,
    }


def find_agreement(path: Path, num_rows: int, dataset: ReplayedDataset) -> LabelAgreement | None:
    """How often the cached top-1 is the label, and the likely cause where it is not.

    None if there are no labels to compare with, if mixing changes them, or if some images were left out.
    """
    if dataset.recipe.mixes or "mixing" in (dataset.recipe.recorded or "") or num_rows != len(dataset):
        return None
    return label_agreement(open_cache(path, dataset), dataset)


def describe_agreement(found: LabelAgreement | None) -> dict[str, str]:
    """Label -> text; empty for None."""
    if found is None:
        return {}
    return {"labels": found.describe() + ("" if found.cause is None else f"; likely {found.cause.text}")}
