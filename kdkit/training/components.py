"""The parts of a training run, made from its configuration: recipe, datasets, student, task, loaders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

import kdkit.data
from kdkit.bounds import check_bound, shown
from kdkit.cache import CacheReader
from kdkit.cache.format.constants import LOGITS
from kdkit.config import EMA, name_data
from kdkit.data import ReplayedDataset, ReplayLoader
from kdkit.errors import ClassMismatchError, ConfigError, UnknownNameError
from kdkit.recipe import ViewRecipe
from kdkit.resolve import resolve_teacher
from kdkit.student import Student, input_size_of, is_student_folder
from kdkit.tasks import TrainingTask
from kdkit.teachers import Teacher
from kdkit.teachers.card import find_card
from kdkit.teachers.class_indices import check_classes_told
from kdkit.teachers.class_names import describe_count_mismatch
from kdkit.teachers.reused_head import ReusedHead
from kdkit.teachers.starting_weights import create_student
from kdkit.teachers.timm_model import FIRST_WEIGHTS, check_name, size_option
from kdkit.training.config import DistillConfig
from kdkit.training.create_task import create_task
from kdkit.training.labels import check_labels, class_names_of
from kdkit.training.live import live_name_of, live_part_of, live_teacher_of
from kdkit.training.run import origins_of, write_config
from kdkit.training.selection import ChosenSamples


def choose_recipe(config: DistillConfig, cache: CacheReader | None) -> ViewRecipe:
    """The recipe that the configuration gives, else the cache's.

    Else the default with a new view in each epoch, at the size of the teacher's own images if it is a run or an export.
    """
    if config.recipe is not None:
        return config.recipe
    if cache is not None:
        return cache.recipe
    return ViewRecipe(size=input_size_of(config.teacher) or ViewRecipe.size, num_views=config.train.epochs)


def make_task(
    config: DistillConfig, dataset: ReplayedDataset, cache: CacheReader | None, device: torch.device
) -> TrainingTask:
    """The student with its teacher and losses, on the device; the student's weights are drawn from the seed."""
    names = dataset.class_names
    if names is not None and cache is not None and cache.num_classes != len(names):
        raise ClassMismatchError(describe_count_mismatch("the cache", cache.num_classes, names))
    teacher = _live_teacher(config, dataset, device)
    if names is not None and isinstance(teacher, Teacher) and config.compares_logits:
        count = teacher.num_classes
        if count is not None and count != len(names):
            raise ClassMismatchError(describe_count_mismatch(f"the teacher {teacher.name!r}", count, names))
    num_classes = _num_classes(config, dataset, cache, teacher)
    check_labels(dataset, num_classes, name_data(config.data))
    student = _create_student(config, dataset, num_classes, class_names_of(dataset, cache, teacher))
    if isinstance(student, ReusedHead):
        given = teacher if isinstance(teacher, Teacher) else live_part_of(cache)
        student.take_head_of(given if isinstance(given, Teacher) else None)
    task = create_task(config, student, teacher, cache, is_multi_label=dataset.is_multi_label, num_rows=len(dataset))
    return task.to(device)


def num_classes_of(task: TrainingTask) -> int:
    """Classes of the task's student."""
    student: Any = unwrap_model(task.get_eval_model())  # out of DistributedDataParallel and torch.compile
    return int(student.num_classes)


def _create_student(
    config: DistillConfig, dataset: ReplayedDataset, num_classes: int, class_names: Sequence[str] | None
) -> nn.Module:
    """The student, its random weights drawn from the seed."""
    options = config.student_options
    if options.get("in_chans", 3) != 3:
        raise ConfigError(f"in_chans must be 3, because images are RGB, got {shown(options['in_chans'])}: leave it out")
    if options.get("features_only"):
        raise ConfigError("a student of features_only has no logits to train: leave it out of student_options")
    given = options.get("num_classes", num_classes)
    if isinstance(given, int) and (given < num_classes or (class_names is not None and given != num_classes)):
        raise ClassMismatchError(
            f"student_options give the student {given} classes, and the images or the teacher have {num_classes}: "
            "leave out num_classes"
        )
    if is_student_folder(config.student):
        raise UnknownNameError(
            f"the student {config.student!r} is the folder of a trained one, expected a timm name: to start from its "
            "weights, name its model and give --student-checkpoint FILE"
        )
    check_name(config.student, "student")
    torch.manual_seed(config.train.seed)  # just before the student, so that it starts alike with and without a teacher
    arguments = {"pretrained": config.pretrained, **_model_args(config, dataset, num_classes)}
    return create_student(config.student, class_names, file=config.student_checkpoint, **arguments)


def _num_classes(
    config: DistillConfig, dataset: ReplayedDataset, cache: CacheReader | None, teacher: Teacher | str | None
) -> int:
    """Classes of the student: those that the data names, or else those of the teacher."""
    if (names := class_names_of(dataset, cache, teacher)) is not None:
        return len(names)
    if cache is not None and LOGITS in cache.codecs:
        return cache.num_classes
    if isinstance(teacher, Teacher) and teacher.num_classes:  # 0 without a head
        return teacher.num_classes
    if dataset.is_multi_label and dataset.num_classes is not None:
        return dataset.num_classes
    if (given := config.student_options.get("num_classes")) is not None:
        if isinstance(given, bool) or not isinstance(given, int):
            raise ConfigError(f"num_classes in student_options is a whole number, got {shown(given)}")
        check_bound("num_classes", given)
        return given
    raise ConfigError("the data does not name its classes: give their number, --student-options '{num_classes: N}'")


def _live_teacher(config: DistillConfig, dataset: ReplayedDataset, device: torch.device) -> Teacher | str | None:
    if config.teacher is None or config.caches:  # beside caches, it is a part of their mix
        return None
    if config.is_ema_teacher:
        return EMA
    teacher = resolve_teacher(config.teacher, device, dataset.class_names, needs_logits=config.compares_logits)
    if config.compares_logits:
        check_classes_told(teacher, dataset)
    return teacher


def _model_args(config: DistillConfig, dataset: ReplayedDataset, num_classes: int) -> dict[str, Any]:
    """The arguments of timm.create_model for the student."""
    return {"num_classes": num_classes, **size_option(config.student, dataset.recipe.size), **config.student_options}


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
    model_args = {name: value for name, value in model_args.items() if name not in FIRST_WEIGHTS}
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
        live_teacher=live_name_of(task, cache),
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
