"""The parts of a distillation, made from its configuration: recipe, datasets, student, task, loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

import kdkit.data
from kdkit.cache import CacheReader
from kdkit.cache.format.constants import LOGITS
from kdkit.config import EMA
from kdkit.data import ReplayedDataset, ReplayLoader
from kdkit.errors import ClassMismatchError, ConfigError, DatasetError, UnknownNameError, nearest
from kdkit.recipe import ViewRecipe
from kdkit.resolve import resolve_dataset, resolve_teacher
from kdkit.tasks import DistillationTask, TrainingTask
from kdkit.teachers import Teacher
from kdkit.teachers.card import find_card
from kdkit.training.config import DistillConfig
from kdkit.training.create_task import create_task
from kdkit.training.run import write_config
from kdkit.training.student import Student

_FIRST_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""Options of timm.create_model that say where a student's first weights come from: its last are in the checkpoint."""


def choose_recipe(config: DistillConfig, cache: CacheReader | None) -> ViewRecipe:
    """The recipe that the configuration gives, else the cache's, else the default."""
    if config.recipe is not None:
        return config.recipe
    return ViewRecipe() if cache is None else cache.recipe


def open_validation(folder: str, training: ReplayedDataset) -> ReplayedDataset:
    """The validation images; the same classes as the training images, or an error."""
    dataset = resolve_dataset(folder, ViewRecipe.evaluation(training.recipe.size))
    if dataset.class_names != training.class_names:
        raise DatasetError(
            f"the validation folder {folder!r} has the classes {_shorten(dataset.class_names)}, "
            f"the training folder {_shorten(training.class_names)}: both must have the same class folders"
        )
    return dataset


def make_task(
    config: DistillConfig, dataset: ReplayedDataset, cache: CacheReader | None, device: torch.device
) -> DistillationTask:
    """The student with its teacher and losses, on the device; the student's weights are drawn from the seed."""
    names = dataset.class_names
    if names is not None and cache is not None and cache.num_classes != len(names):
        raise ClassMismatchError(f"the cache has {cache.num_classes} classes, the data {len(names)}")
    teacher = _live_teacher(config, device)
    num_classes = _num_classes(config, dataset, cache, teacher)
    if not timm.is_model(config.student.partition(".")[0]):
        raise UnknownNameError(
            f"timm {timm.__version__} has no student {config.student!r}{nearest(config.student, timm.list_models())}"
        )
    torch.manual_seed(config.train.seed)  # just before the student, so that it starts alike with and without a teacher
    try:
        student = timm.create_model(config.student, **_model_args(config, dataset, num_classes))
    except TypeError as error:
        raise ConfigError(f"the student {config.student!r} does not take these student_options: {error}") from error
    return create_task(config, student, teacher, cache).to(device)


def num_classes_of(task: TrainingTask) -> int:
    """Classes of the task's student."""
    student: Any = task.get_eval_model()
    return int(student.num_classes)


def _num_classes(
    config: DistillConfig, dataset: ReplayedDataset, cache: CacheReader | None, teacher: Teacher | str | None
) -> int:
    """Classes of the student: as many as the data names, or else as the teacher answers with."""
    if dataset.class_names is not None:
        return len(dataset.class_names)
    if cache is not None and LOGITS in cache.codecs:
        return cache.num_classes
    if isinstance(teacher, Teacher) and teacher.num_classes is not None:
        return teacher.num_classes
    if (told := config.student_options.get("num_classes")) is not None:
        return int(told)
    raise ConfigError("the data does not name its classes: give their number, --student_options '{num_classes: N}'")


def _live_teacher(config: DistillConfig, device: torch.device) -> Teacher | str | None:
    if config.teacher is None:
        return None
    return EMA if config.is_own_teacher else resolve_teacher(config.teacher, device)


def _model_args(config: DistillConfig, dataset: ReplayedDataset, num_classes: int) -> dict[str, Any]:
    """What timm.create_model is given for the student."""
    return {"num_classes": num_classes, **_image_size(config.student, dataset), **config.student_options}


def describe(config: DistillConfig, dataset: ReplayedDataset, num_classes: int, output: Path) -> None:
    """Leaves the configuration, and what `kdkit evaluate` and `export` need beside the weights."""
    write_config(config, output)
    shown = ViewRecipe.evaluation(dataset.recipe.size)
    names = None if dataset.class_names is None else tuple(dataset.class_names)
    model_args = _model_args(config, dataset, num_classes)
    model_args = {name: value for name, value in model_args.items() if name not in _FIRST_WEIGHTS}
    Student(config.student, model_args, shown.size, shown.crop_pct, shown.interpolation, names).write(output)


def card_top1(task: DistillationTask, cache: CacheReader | None, num_classes: int) -> float | None:
    """What the teacher's card cites, if it has one for so many classes, percent."""
    name = task.teacher.name if cache is None and task.teacher is not None else None
    if cache is not None:
        name = cache.teacher.get("name")
    card = None if name is None else find_card(name)
    if card is None or card.num_classes != num_classes:
        return None
    return max((top1.percent for top1 in card.published_top1), default=None)


def _image_size(student: str, dataset: ReplayedDataset) -> dict[str, int]:
    """The views' size, for a model that is made for one size."""
    fixed = getattr(timm.get_pretrained_cfg(student, allow_unregistered=True), "fixed_input_size", False)
    return {"img_size": dataset.recipe.size} if fixed else {}


def create_loader(
    dataset: ReplayedDataset, task: TrainingTask, config: DistillConfig, device: torch.device, *, shuffle: bool
) -> ReplayLoader:
    """This rank's share of the images, in the student's normalisation."""
    return kdkit.data.create_loader(
        dataset,
        task,
        batch_size=config.train.batch_size,
        num_workers=config.train.num_workers,
        shuffle=shuffle,
        seed=config.train.seed,
        device=device,
    )


def _shorten(names: Any, limit: int = 5) -> str:
    listed = ", ".join(list(names or ())[:limit])
    return f"[{listed}{', ...' if names and len(names) > limit else ''}]"
