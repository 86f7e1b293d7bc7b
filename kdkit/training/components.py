"""The parts of a training run, made from its configuration: recipe, datasets, student, task, loaders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import unwrap_model
from torch import nn

import kdkit.data
from kdkit.cache import CacheReader
from kdkit.cache.format.constants import LOGITS
from kdkit.config import EMA
from kdkit.data import ReplayedDataset, ReplayLoader
from kdkit.dataset import open_dataset
from kdkit.errors import (
    CheckpointError,
    ClassMismatchError,
    ConfigError,
    DatasetError,
    UnknownNameError,
    first_line,
    nearest,
)
from kdkit.recipe import ViewRecipe
from kdkit.resolve import resolve_teacher
from kdkit.student import Student
from kdkit.tasks import DistillationTask, TrainingTask
from kdkit.teachers import Teacher
from kdkit.teachers.card import find_card
from kdkit.training.config import DistillConfig
from kdkit.training.create_task import create_task
from kdkit.training.labels import check_labels, class_names_of
from kdkit.training.run import origins_of, write_config
from kdkit.training.selection import ChosenSamples

_FIRST_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""Arguments of timm.create_model about the initial weights: the trained ones are in the checkpoint."""


def choose_recipe(config: DistillConfig, cache: CacheReader | None) -> ViewRecipe:
    """The recipe that the configuration gives, else the cache's, else the default."""
    if config.recipe is not None:
        return config.recipe
    return ViewRecipe() if cache is None else cache.recipe


def open_validation(
    config: DistillConfig,
    training: ReplayedDataset,
    class_names: Sequence[str] | None,
    num_classes: int,
    chosen: Sequence[str] | None = None,
) -> ReplayedDataset | None:
    """The validation images, labelled; of the student's classes, or an error. None if the run has none.

    Of the images of a run on some classes, `chosen`, those of others are left out.
    """
    if (folder := config.validation) is None:
        return None
    dataset = open_dataset(
        folder, recipe=ViewRecipe.evaluation(training.recipe.size), class_names=chosen, **config.columns
    )
    if dataset.is_unlabelled:
        raise DatasetError(f"no image of {folder!r} has a label to validate with: give a folder of class folders")
    names = None if class_names is None else list(class_names)
    is_known = names is not None or not training.is_unlabelled
    if dataset.class_names != names if is_known else len(dataset.class_names or ()) not in (0, num_classes):
        expected = _shorten(names) if is_known else f"{num_classes} classes without names"
        raise DatasetError(
            f"the validation folder {folder!r} has the classes {_shorten(dataset.class_names)}, "
            f"the training folder {expected}: both must have the same class folders"
        )
    check_labels(dataset, num_classes, folder)
    return dataset


def make_task(
    config: DistillConfig, dataset: ReplayedDataset, cache: CacheReader | None, device: torch.device
) -> TrainingTask:
    """The student with its teacher and losses, on the device; the student's weights are drawn from the seed."""
    names = dataset.class_names
    if names is not None and cache is not None and cache.num_classes != len(names):
        raise ClassMismatchError(f"the cache has {cache.num_classes} classes, the data {len(names)}")
    teacher = _live_teacher(config, dataset, device)
    num_classes = _num_classes(config, dataset, cache, teacher)
    check_labels(dataset, num_classes, config.data)
    return create_task(config, _create_student(config, dataset, num_classes), teacher, cache).to(device)


def num_classes_of(task: TrainingTask) -> int:
    """Classes of the task's student."""
    student: Any = unwrap_model(task.get_eval_model())  # out of DistributedDataParallel and torch.compile
    return int(student.num_classes)


def live_teacher_of(task: TrainingTask) -> Teacher | None:
    """The task's own teacher; None for labels alone, for a cache, and for an EMA teacher."""
    return task.teacher if isinstance(task, DistillationTask) else None


def _create_student(config: DistillConfig, dataset: ReplayedDataset, num_classes: int) -> nn.Module:
    """The student, its random weights drawn from the seed."""
    if not timm.is_model(config.student.partition(".")[0]):
        raise UnknownNameError(
            f"timm {timm.__version__} has no student {config.student!r}{nearest(config.student, timm.list_models())}"
        )
    _check_tag(config.student)
    torch.manual_seed(config.train.seed)  # just before the student, so that it starts alike with and without a teacher
    arguments = {"pretrained": config.pretrained, **_model_args(config, dataset, num_classes)}
    try:
        student: nn.Module = timm.create_model(config.student, **arguments)
        return student
    except TypeError as error:
        raise ConfigError(f"the student {config.student!r} does not take these student_options: {error}") from error
    except Exception as error:
        if not config.pretrained:
            raise
        raise CheckpointError(  # for whatever the hub client raises
            f"the pretrained weights of the student {config.student!r} could not be loaded ({first_line(error)}): "
            "check the network, or leave out pretrained"
        ) from error


def _check_tag(name: str) -> None:
    """Raises UnknownNameError unless timm knows the tag, where the name has one."""
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tagged = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise UnknownNameError(
            f"timm {timm.__version__} has no student {name!r}; it has {', '.join(tagged) or 'none'}"
        ) from error


def _num_classes(
    config: DistillConfig, dataset: ReplayedDataset, cache: CacheReader | None, teacher: Teacher | str | None
) -> int:
    """Classes of the student: those that the data names, or else those of the teacher."""
    if (names := class_names_of(dataset, cache, teacher)) is not None:
        return len(names)
    if cache is not None and LOGITS in cache.codecs:
        return cache.num_classes
    if isinstance(teacher, Teacher) and teacher.num_classes is not None:
        return teacher.num_classes
    if (given := config.student_options.get("num_classes")) is not None:
        return int(given)
    raise ConfigError("the data does not name its classes: give their number, --student_options '{num_classes: N}'")


def _live_teacher(config: DistillConfig, dataset: ReplayedDataset, device: torch.device) -> Teacher | str | None:
    if config.teacher is None:
        return None
    return EMA if config.is_own_teacher else resolve_teacher(config.teacher, device, dataset.class_names)


def _model_args(config: DistillConfig, dataset: ReplayedDataset, num_classes: int) -> dict[str, Any]:
    """The arguments of timm.create_model for the student."""
    return {"num_classes": num_classes, **_image_size(config.student, dataset), **config.student_options}


def describe(
    config: DistillConfig,
    dataset: ReplayedDataset,
    task: TrainingTask,
    class_names: Sequence[str] | None,
    output: Path,
    cache: CacheReader | None,
) -> None:
    """Writes the configuration, and the student's description that `kdkit evaluate`, `export` and `compare` need."""
    write_config(config, output)
    evaluated = ViewRecipe.evaluation(dataset.recipe.size)
    names = None if class_names is None else tuple(class_names)
    model_args = _model_args(config, dataset, num_classes_of(task))
    model_args = {name: value for name, value in model_args.items() if name not in _FIRST_WEIGHTS}
    student: Any = task.get_eval_model()
    Student(
        config.student,
        model_args,
        evaluated.size,
        evaluated.crop_pct,
        evaluated.interpolation,
        names,
        num_parameters=sum(parameter.numel() for parameter in student.parameters()),
        num_views=dataset.recipe.num_views,
        caches=origins_of(cache),
    ).write(output)


def card_top1(task: TrainingTask, cache: CacheReader | None, num_classes: int) -> float | None:
    """The best top-1 that the teacher's card cites, percent; None without a card for so many classes."""
    teacher = live_teacher_of(task)
    name = None if teacher is None else teacher.name
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
    dataset: ReplayedDataset,
    task: TrainingTask,
    config: DistillConfig,
    device: torch.device,
    *,
    shuffle: bool,
    samples: ChosenSamples | None = None,
) -> ReplayLoader:
    """This rank's share of the images, or of the chosen ones, in the student's normalisation.

    Only training shares decodes.
    """
    views = config.train.views_per_decode
    return kdkit.data.create_loader(
        dataset,
        task,
        batch_size=config.train.batch_size,
        views_per_decode=views if shuffle and isinstance(views, int) else 1,
        num_epochs=config.train.epochs,
        num_workers=config.train.workers,
        shuffle=shuffle,
        seed=config.train.seed,
        device=device,
        rows=None if samples is None else samples.rows,
        shown_views=None if samples is None else samples.views,
    )


def _shorten(names: Any, limit: int = 5) -> str:
    listed = ", ".join(list(names or ())[:limit])
    return f"[{listed}{', ...' if names and len(names) > limit else ''}]"
