"""Distilling a student by configuration: from a cache, or from a live teacher."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import random_seed

from kdkit.cache import CachedTeacher, open_cache
from kdkit.cache.format import LOGITS
from kdkit.config import DistillConfig, ReplayRecipe
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.engine import ranks
from kdkit.engine.checkpoint import BEST, LAST, PREVIOUS, Checkpoints
from kdkit.engine.create_task import create_task
from kdkit.engine.listeners import TENSORBOARD
from kdkit.engine.logger import FILES
from kdkit.engine.output import prepare_output
from kdkit.engine.preflight import PreflightReport, preflight
from kdkit.engine.progress import progress
from kdkit.engine.resolve import resolve_dataset, resolve_device, resolve_teacher
from kdkit.engine.run import CONFIG, SKIPPED, SkipRecord, create_logger, run_identity, write_config
from kdkit.engine.student import STUDENT, Student
from kdkit.engine.train import TrainReport, train
from kdkit.errors import ClassMismatchError, ConfigError, DatasetError, UnknownNameError, nearest
from kdkit.signals import Normalization
from kdkit.tasks import DistillationTask, TrainingTask
from kdkit.teachers import list_cards

_FILES = (*FILES, LAST, BEST, PREVIOUS, CONFIG, STUDENT, TENSORBOARD, SKIPPED)


@dataclass(frozen=True)
class DistillReport:
    """What a distillation left."""

    output: Path
    """Folder of the checkpoints and the metrics."""
    checkpoint: Path
    """The newest checkpoint, with the student's weights in the layout of timm's checkpoints."""
    training: TrainReport
    """Accuracy, time and terms."""
    preflight: PreflightReport | None
    """What was seen before the first step; None for a run that went on, or was told not to look."""


def distill(config: DistillConfig, *, show_progress: bool = False) -> DistillReport:
    """Trains a student as `config` says; in a run of several ranks, every rank calls this.

    Args:
        config: data, student, and a cache or a live teacher.
        show_progress: whether progress is shown on standard error, by rank 0.

    Raises:
        KdkitError: a child of it for each thing that does not fit; see kdkit.errors.
        SystemExit, KeyboardInterrupt: SIGTERM or SIGINT came; a checkpoint is there.
    """
    config = dataclasses.replace(config, resume=config.resume or ranks.restarted())
    device = resolve_device(config.device)
    streams = None if config.task == "feature" else [LOGITS]
    cache = None if config.cache is None else open_cache(config.cache, streams=streams)
    dataset = resolve_dataset(config.data, _recipe(config, cache))
    if config.unreadable == "skip":
        dataset = dataset.skipping_unreadable()
    if cache is not None:
        cache.match(dataset, allow_mismatch=config.allow_mismatch)
    validation = None if config.validation is None else _validation_dataset(config.validation, dataset)
    task = _create_task(config, dataset, cache, device)
    shown_views = dataset.with_teacher_view() if cache is None else dataset
    loader = _loader(shown_views, task, config, device, shuffle=True)
    output = ranks.on_rank_zero(
        lambda: prepare_output(
            config.output, _FILES, overwrite=config.overwrite, checkpoint=LAST if config.resume else None
        )
    )
    checkpoints = Checkpoints(
        output,
        run_identity(config, dataset, cache),
        resume=config.resume,
        describe=lambda: _describe(config, dataset, output),
    )
    loader.on_skip = SkipRecord(output)
    source = task.teacher if cache is None else cache
    resumes = config.resume and checkpoints.last.exists()
    shown = show_progress and ranks.rank() == 0
    seen = None
    if config.preflight and not resumes:
        seen = preflight(task, loader, source, config.train, card_top1=_card_top1(task, cache, dataset))
        if shown:
            print(seen, file=sys.stderr, flush=True)
    total = config.train.epochs * loader.num_images * ranks.world_size()
    logger = create_logger(config, output) if ranks.rank() == 0 else None
    random_seed(config.train.seed, ranks.rank())  # what a student draws, such as dropout, differs from rank to rank
    try:
        with progress(f"distilling {config.student}", total, "images", enabled=shown) as display:
            training = train(
                task,
                loader,
                config.train,
                teacher_source=source,
                validation=None if validation is None else _loader(validation, task, config, device, shuffle=False),
                logger=logger,
                display=display,
                checkpoints=checkpoints,
            )
    finally:
        if logger is not None:
            logger.close()
    return DistillReport(output, checkpoints.last, training, seen)


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
) -> DistillationTask:
    num_classes = len(dataset.class_names or ())
    if cache is not None and cache.num_classes != num_classes:
        raise ClassMismatchError(f"the cache has {cache.num_classes} classes, the data {num_classes}")
    teacher = None if config.teacher is None else resolve_teacher(config.teacher, device)
    if not timm.is_model(config.student.partition(".")[0]):
        raise UnknownNameError(
            f"timm {timm.__version__} has no student {config.student!r}{nearest(config.student, timm.list_models())}"
        )
    torch.manual_seed(config.train.seed)  # just before the student, so that it starts alike with and without a teacher
    try:
        student = timm.create_model(config.student, **_model_args(config, dataset))
    except TypeError as error:
        raise ConfigError(f"the student {config.student!r} does not take these student_options: {error}") from error
    return create_task(config, student, teacher, cache).to(device)


def _model_args(config: DistillConfig, dataset: ReplayedDataset) -> dict[str, Any]:
    """What timm.create_model is given for the student."""
    return {
        "num_classes": len(dataset.class_names or ()),
        **_image_size(config.student, dataset),
        **config.student_options,
    }


def _describe(config: DistillConfig, dataset: ReplayedDataset, output: Path) -> None:
    """Leaves the configuration, and what `kdkit evaluate` and `export` need beside the weights."""
    write_config(config, output)
    shown = ReplayRecipe.evaluation(dataset.recipe.size)
    names = None if dataset.class_names is None else tuple(dataset.class_names)
    model_args = _model_args(config, dataset)
    Student(config.student, model_args, shown.size, shown.crop_pct, shown.interpolation, names).write(output)


def _card_top1(task: DistillationTask, cache: CachedTeacher | None, dataset: ReplayedDataset) -> float | None:
    """What the teacher's card cites, if it has one for so many classes, percent."""
    name = task.teacher.name if cache is None and task.teacher is not None else None
    if cache is not None:
        name = cache.metadata.teacher.get("name")
    cards = [card for card in list_cards() if card.name == name and card.num_classes == len(dataset.class_names or ())]
    return max((top1.percent for card in cards for top1 in card.published_top1), default=None)


def _image_size(student: str, dataset: ReplayedDataset) -> dict[str, int]:
    """The views' size, for a model that is made for one size."""
    fixed = getattr(timm.get_pretrained_cfg(student, allow_unregistered=True), "fixed_input_size", False)
    return {"img_size": dataset.recipe.size} if fixed else {}


def _loader(
    dataset: ReplayedDataset, task: TrainingTask, config: DistillConfig, device: torch.device, *, shuffle: bool
) -> ReplayLoader:
    drop_last = shuffle and len(dataset) // ranks.world_size() > config.train.batch_size
    sampler = EpochSampler(
        range(len(dataset)),
        config.train.batch_size,
        num_views=dataset.recipe.num_views,
        shuffle=shuffle,
        seed=config.train.seed,
        drop_last=drop_last,  # one image is no batch for a batch norm
        rank=ranks.rank(),
        world_size=ranks.world_size(),
    )
    student: Any = task.get_eval_model()
    return ReplayLoader(
        dataset, sampler, Normalization.of(student), device=device, num_workers=config.train.num_workers
    )


def _shorten(names: Any, limit: int = 5) -> str:
    listed = ", ".join(list(names or ())[:limit])
    return f"[{listed}{', ...' if names and len(names) > limit else ''}]"
