"""Evaluating a student by configuration: from a run, an export or timm, on a folder of images."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader, translate_worker_errors
from kdkit.dataset import open_dataset
from kdkit.errors import ClassMismatchError, DatasetError, OutputExistsError
from kdkit.evaluation.config import EvaluateConfig
from kdkit.recipe import ViewRecipe
from kdkit.resolve import resolve_device
from kdkit.runtime import files
from kdkit.runtime.progress import progress
from kdkit.student import Student, load_student
from kdkit.tasks import ClassificationTask
from kdkit.training.evaluate import evaluate
from kdkit.types import Normalization


@dataclass(frozen=True)
class EvaluateReport:
    """The accuracy and the speed of a student."""

    student: str
    """Name of the student: its folder, or its timm name."""
    top1: float
    """Top-1, percent."""
    top5: float
    """Top-5, percent."""
    loss: float
    """Cross-entropy, nats."""
    num_images: int
    """Number of images."""
    images_per_second: float
    """Images per second, loading included."""
    caches: tuple[dict[str, str], ...] = ()
    """The caches that taught the student, as `kdkit.student.Student` names them."""


@translate_worker_errors()
def evaluate_student(config: EvaluateConfig, *, show_progress: bool = False) -> EvaluateReport:
    """Runs the student that `config` names on every image of a folder.

    Args:
        config: student, images and device.
        show_progress: whether progress is shown on standard error.

    Raises:
        CheckpointError: there are no such weights, or they do not fit.
        ClassMismatchError: the folder's classes are not the student's.
        DatasetError: the images have no labels.
        OutputExistsError: the output file exists.
    """
    output = None if config.output is None else Path(config.output)
    if output is not None and output.exists() and not config.overwrite:
        raise OutputExistsError(f"{str(output)!r} exists: pass --overwrite to replace it")
    device = resolve_device(config.device)
    model, student = load_student(config)
    dataset = _open_images(config, student)
    if dataset.is_unlabelled:
        raise DatasetError(f"no image of {config.data!r} has a label to evaluate with: give a folder of class folders")
    _check_same_classes(config, model, student, dataset)
    loader = ReplayLoader(
        dataset,
        EpochSampler(range(len(dataset)), config.batch_size, shuffle=False),
        Normalization.of(model),
        device=device,
        num_workers=config.workers,
    )
    task = ClassificationTask(model.to(device), device=device)
    begun = time.perf_counter()
    with progress(f"evaluating {config.student}", len(dataset), "images", enabled=show_progress) as advance:
        found = evaluate(task, loader)
        seconds = time.perf_counter() - begun
        advance(len(dataset))
    report = EvaluateReport(
        config.student,
        found["top1"],
        found["top5"],
        found["loss"],
        len(dataset),
        len(dataset) / seconds,
        student.caches,
    )
    if output is not None:
        files.write_text(output, json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    return report


def _open_images(config: EvaluateConfig, student: Student) -> ReplayedDataset:
    """The images in the student's view; of its classes alone and in its order, where the data has them all by name."""
    recipe, names = _recipe(config, student), student.class_names
    dataset = open_dataset(config.data, recipe=recipe, **config.columns)
    found = tuple(dataset.class_names or ())
    if names is None or names == found or not set(names) <= set(found):
        return dataset
    return open_dataset(config.data, recipe=recipe, class_names=names, **config.columns)


def _recipe(config: EvaluateConfig, student: Student) -> ViewRecipe:
    """The student's evaluation view, with the size and crop of the configuration where it names them."""
    recipe = student.recipe
    return dataclasses.replace(
        recipe,
        size=recipe.size if config.input_size is None else config.input_size,
        crop_pct=recipe.crop_pct if config.crop_pct is None else config.crop_pct,
    )


def _check_same_classes(config: EvaluateConfig, model: nn.Module, student: Student, dataset: ReplayedDataset) -> None:
    names, count = dataset.class_names or (), getattr(model, "num_classes", None)
    if count != len(names):
        raise ClassMismatchError(
            f"the student {config.student!r} has {count} classes, the folder {config.data!r} has {len(names)}: "
            "give images of its classes"
        )
    if student.class_names is not None and tuple(names) != student.class_names:
        first = next(i for i, pair in enumerate(zip(names, student.class_names, strict=True)) if pair[0] != pair[1])
        raise ClassMismatchError(
            f"class {first} is {names[first]!r} in the folder {config.data!r}, but "
            f"{student.class_names[first]!r} for the student {config.student!r}: name the class folders as its classes"
        )
