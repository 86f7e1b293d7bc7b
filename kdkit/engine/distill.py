"""Distilling a student by configuration: from a cache, or from a live teacher."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import unwrap_model

from kdkit.cache import CachedTeacher, durable, open_cache
from kdkit.config import DistillConfig, ReplayRecipe
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.engine.logger import FILES, RunLogger
from kdkit.engine.output import prepare_output
from kdkit.engine.progress import progress
from kdkit.engine.resolve import resolve_dataset, resolve_device, resolve_teacher
from kdkit.engine.student import STUDENT, Student
from kdkit.engine.train import TrainReport, train
from kdkit.errors import ClassMismatchError, DatasetError, UnknownNameError, nearest
from kdkit.signals import Normalization
from kdkit.tasks import LogitDistillationTask, TrainingTask

CHECKPOINT, CONFIG = "last.pth.tar", "config.json"
_FILES = (*FILES, CHECKPOINT, CONFIG, STUDENT)


@dataclass(frozen=True)
class DistillReport:
    """What a distillation left."""

    output: Path
    """Folder of the checkpoint and the metrics."""
    checkpoint: Path
    """The student's weights, in the layout of timm's checkpoints."""
    training: TrainReport
    """Accuracy, time and terms."""


def distill(config: DistillConfig, *, show_progress: bool = False) -> DistillReport:
    """Trains a student as `config` says.

    Args:
        config: data, student, and a cache or a live teacher.
        show_progress: whether progress is shown on standard error.

    Raises:
        KdkitError: a child of it for each thing that does not fit; see kdkit.errors.
    """
    device = resolve_device(config.device)
    cache = None if config.cache is None else open_cache(config.cache)
    dataset = resolve_dataset(config.data, _recipe(config, cache))
    if cache is not None:
        cache.match(dataset, allow_mismatch=config.allow_mismatch)
    validation = None if config.validation is None else _validation_dataset(config.validation, dataset)
    task = _create_task(config, dataset, cache, device)
    loader = _loader(dataset, task, config, device, shuffle=True)
    output = prepare_output(config.output, _FILES, overwrite=config.overwrite)
    checkpoint = output / CHECKPOINT

    def save(epoch: int, record: Mapping[str, float]) -> None:
        """Leaves the student of every finished epoch, whole or not at all."""
        durable.write_text(output / CONFIG, json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        _describe(config, dataset).write(output)
        with durable.replacing(checkpoint) as temporary:
            torch.save({"epoch": epoch, "version": 2, **task.get_checkpoint_state()}, temporary)

    with progress(
        f"distilling {config.student}", config.train.epochs * loader.num_images, "images", enabled=show_progress
    ) as advance:
        training = train(
            task,
            loader,
            config.train,
            teacher_source=cache,
            validation=None if validation is None else _loader(validation, task, config, device, shuffle=False),
            logger=RunLogger(output),
            advance=advance,
            end_of_epoch=save,
        )
    return DistillReport(output, checkpoint, training)


def _recipe(config: DistillConfig, cache: CachedTeacher | None) -> ReplayRecipe:
    if config.recipe is not None:
        return config.recipe
    return ReplayRecipe() if cache is None else ReplayRecipe.from_dict(cache.metadata.recipe)


def _validation_dataset(folder: str, training: ReplayedDataset) -> ReplayedDataset:
    dataset = resolve_dataset(folder, ReplayRecipe.evaluation(training.recipe.size))
    if dataset.class_names != training.class_names:
        raise DatasetError(
            f"the validation folder {folder!r} has the classes {_shorten(dataset.class_names)}, "
            f"the training folder {_shorten(training.class_names)}: both must have the same class folders"
        )
    return dataset


def _create_task(
    config: DistillConfig, dataset: ReplayedDataset, cache: CachedTeacher | None, device: torch.device
) -> TrainingTask:
    num_classes = len(dataset.class_names or ())
    if cache is not None and cache.num_classes != num_classes:
        raise ClassMismatchError(f"the cache has {cache.num_classes} classes, the data {num_classes}")
    teacher = None if config.teacher is None else resolve_teacher(config.teacher, device)
    if not timm.is_model(config.student.partition(".")[0]):
        raise UnknownNameError(
            f"timm {timm.__version__} has no student {config.student!r}{nearest(config.student, timm.list_models())}"
        )
    torch.manual_seed(config.train.seed)  # just before the student, so that it starts alike with and without a teacher
    student = timm.create_model(config.student, **_model_args(config, dataset))
    return LogitDistillationTask(
        student,
        teacher,
        distill_loss=config.distill_loss,
        temperature=config.temperature,
        task_loss_weight=config.task_loss_weight,
        distill_loss_weight=config.distill_loss_weight,
    ).to(device)


def _model_args(config: DistillConfig, dataset: ReplayedDataset) -> dict[str, Any]:
    """What timm.create_model is given for the student."""
    return {"num_classes": len(dataset.class_names or ()), **_image_size(config.student, dataset)}


def _describe(config: DistillConfig, dataset: ReplayedDataset) -> Student:
    """What `kdkit evaluate` and `export` need beside the weights."""
    shown = ReplayRecipe.evaluation(dataset.recipe.size)
    names = None if dataset.class_names is None else tuple(dataset.class_names)
    return Student(config.student, _model_args(config, dataset), shown.size, shown.crop_pct, shown.interpolation, names)


def _image_size(student: str, dataset: ReplayedDataset) -> dict[str, int]:
    """The views' size, for a model that is made for one size."""
    fixed = getattr(timm.get_pretrained_cfg(student, allow_unregistered=True), "fixed_input_size", False)
    return {"img_size": dataset.recipe.size} if fixed else {}


def _loader(
    dataset: ReplayedDataset, task: TrainingTask, config: DistillConfig, device: torch.device, *, shuffle: bool
) -> ReplayLoader:
    sampler = EpochSampler(
        range(len(dataset)),
        config.train.batch_size,
        num_views=dataset.recipe.num_views,
        shuffle=shuffle,
        seed=config.train.seed,
        drop_last=shuffle and len(dataset) > config.train.batch_size,  # one image is no batch for a batch norm
    )
    student: Any = unwrap_model(task.trainable_module)
    return ReplayLoader(
        dataset, sampler, Normalization.of(student), device=device, num_workers=config.train.num_workers
    )


def _shorten(names: Any, limit: int = 5) -> str:
    listed = ", ".join(list(names or ())[:limit])
    return f"[{listed}{', ...' if names and len(names) > limit else ''}]"
