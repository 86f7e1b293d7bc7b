"""Evaluating a student by configuration: from a run, an export or timm, on a folder of images."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader, translate_worker_errors
from kdkit.dataset import open_dataset
from kdkit.errors import ClassMismatchError, ConfigError, DatasetError, OutputExistsError
from kdkit.evaluation.config import EvaluateConfig
from kdkit.recipe import ViewRecipe
from kdkit.resolve import resolve_device
from kdkit.runtime import files
from kdkit.runtime.hardware import fast_kernels
from kdkit.runtime.progress import progress
from kdkit.student import Student, load_student
from kdkit.tasks import ClassificationTask, MultiLabelClassificationTask
from kdkit.teachers.class_indices import check_counted, check_tellable
from kdkit.teachers.class_names import check_names, describe_count_mismatch, reorder_names
from kdkit.teachers.imagenet import names_like
from kdkit.training.evaluate import evaluate
from kdkit.training.labels import check_labels
from kdkit.training.selection import read_class_names
from kdkit.types import Normalization

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateReport:
    """The accuracy and the speed of a student."""

    student: str
    """Name of the student: its folder, or its timm name."""
    top1: float | None
    """Top-1, percent; None for multi-label data."""
    top5: float | None
    """Top-5, percent; None for multi-label data."""
    loss: float
    """Cross-entropy, nats; for multi-label data the binary one, averaged over the classes."""
    num_images: int
    """Number of images."""
    images_per_second: float
    """Images per second, loading included."""
    mean_ap: float | None = None
    """Mean average precision over the classes, percent, of multi-label data; else None."""
    weights: str | None = None
    """The weights file and its epoch; None for an export, and for weights of timm."""
    caches: tuple[dict[str, str], ...] = ()
    """The caches that taught the student, as `kdkit.student.Student` names them."""
    live_teacher: str | None = None
    """The teacher that ran in every step of its training, alone or beside caches; None without one."""


@translate_worker_errors()
def evaluate_student(config: EvaluateConfig, *, show_progress: bool = False) -> EvaluateReport:
    """Runs the student that `config` names on every image of a folder.

    Args:
        config: student, images and device.
        show_progress: whether progress is shown on standard error.

    Raises:
        CheckpointError: there are no such weights, or they do not fit.
        ClassMismatchError: the folder's classes are not the student's; in another order they are matched by name.
        DatasetError: the images have no labels, or one cannot be read and such images are not skipped.
        OutputExistsError: the output file exists.
    """
    output = None if config.output is None else Path(config.output)
    if output is not None and output.exists() and not config.overwrite:
        raise OutputExistsError(f"{str(output)!r} exists: pass --overwrite to replace it")
    device = resolve_device(config.device)
    model, student = load_student(config)
    given, has_names = read_class_names(config.class_names), student.class_names is not None
    student = student if has_names else dataclasses.replace(student, class_names=given)
    dataset = _open_images(config, student)
    dataset = dataset.skipping_unreadable() if config.unreadable == "skip" else dataset
    if given is not None and has_names and dataset.class_names is not None:
        raise ConfigError(f"{config.student!r} and {config.data!r} both name their classes: leave out class_names")
    if dataset.is_unlabelled:
        raise DatasetError(f"no image of {config.data!r} has a label to evaluate with: give a folder of class folders")
    normalization, model = Normalization.of(model), _match_classes(config, model, student, dataset, given)
    sampler = EpochSampler(range(len(dataset)), config.batch_size, shuffle=False)
    loader = ReplayLoader(dataset, sampler, normalization, device=device, num_workers=config.workers)
    loader.on_skip = skipped = _Skipped(loader.on_skip)
    task = (MultiLabelClassificationTask if dataset.is_multi_label else ClassificationTask)(
        model.to(device), device=device
    )
    begun = time.perf_counter()
    with progress(f"evaluating {config.student}", len(dataset), "images", enabled=show_progress) as advance:
        amp = None if config.amp is None else getattr(torch, config.amp)
        with fast_kernels(device):
            found = evaluate(task, loader, amp=amp)
        seconds = time.perf_counter() - begun
        advance(len(dataset))
    num_images = len(dataset) - len(skipped.keys)
    report = EvaluateReport(
        config.student,
        found.get("top1"),
        found.get("top5"),
        found["loss"],
        num_images,
        num_images / seconds,
        found.get("mAP"),
        student.weights,
        student.caches,
        student.live_teacher,
    )
    if output is not None:
        files.write_text(output, json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    return report


class _Skipped:
    """Hands each skipped sample on, and keeps its key."""

    def __init__(self, on_skip: Callable[[str, str], None]) -> None:
        self._on_skip = on_skip
        self.keys: set[str] = set()

    def __call__(self, key: str, reason: str) -> None:
        self.keys.add(key)
        self._on_skip(key, reason)


def _open_images(config: EvaluateConfig, student: Student) -> ReplayedDataset:
    """The images in the student's view; of its classes alone and in its order, where the data has them all by name."""
    recipe, names = _recipe(config, student), student.class_names
    dataset = open_dataset(config.data, recipe=recipe, **config.columns)
    found = tuple(dataset.class_names or ())
    if names is None or names == found or dataset.is_multi_label or not set(names) <= set(found):
        return dataset
    chosen = open_dataset(config.data, recipe=recipe, class_names=names, **config.columns)
    if left := len(dataset) - len(chosen):
        _logger.warning(
            "%d of %d images are left out, because the student does not have their %d classes",
            left,
            len(dataset),
            len(found) - len(names),
        )
    return chosen


def _recipe(config: EvaluateConfig, student: Student) -> ViewRecipe:
    """The student's evaluation view, with the size and crop of the configuration where it names them."""
    recipe = student.recipe
    return dataclasses.replace(
        recipe,
        size=recipe.size if config.input_size is None else config.input_size,
        crop_pct=recipe.crop_pct if config.crop_pct is None else config.crop_pct,
    )


def _match_classes(
    config: EvaluateConfig,
    model: nn.Module,
    student: Student,
    dataset: ReplayedDataset,
    given: Sequence[str] | None,
) -> nn.Module:
    """The model with its classes in the order of the data's, by name where both name them.

    Raises:
        ClassMismatchError: the data has other classes; names the first difference. One of the two has class indices
            alone, whose order cannot be told.
    """
    names, count, subject = (
        dataset.class_names or given,
        getattr(model, "num_classes", None),
        f"the student {config.student!r}",
    )
    if count is not None:
        check_labels(dataset, count, config.data)
    if names is None:
        check_tellable(student.class_names, subject)
        return model
    known = check_names(student.class_names, model, subject) or names_like(names, count)
    if known is None:
        if count is not None and count != len(names):
            raise ClassMismatchError(describe_count_mismatch(subject, count, names))
        check_counted(model, names, subject)
        return model
    index = reorder_names(names, known, subject, takes_map=False)
    if index == tuple(range(len(index))):
        return model
    _logger.warning("the classes of %s are brought into the order of the data, by name", subject)
    return _InOrder(model, index)


class _InOrder(nn.Module):
    """A model whose classes are in another order.

    Args:
        model: maps images to logits [B, C].
        index: for each class its index among the model's [C].
    """

    def __init__(self, model: nn.Module, index: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("index", torch.tensor(index))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 3, H, W]."""
        logits: Tensor = self.model(images)
        return logits[:, self.index]

    index: Tensor
