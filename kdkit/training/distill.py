"""Distilling a student by configuration: from a cache, or from a live teacher."""

from __future__ import annotations

import dataclasses
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from timm.utils import random_seed

from kdkit.cache import open_cache
from kdkit.cache.format.constants import LOGITS
from kdkit.resolve import resolve_dataset, resolve_device
from kdkit.runtime import distributed
from kdkit.runtime.output import prepare_output
from kdkit.runtime.progress import progress
from kdkit.training.checkpoint import BEST, LAST, PREVIOUS, Checkpoints
from kdkit.training.components import (
    card_top1,
    choose_recipe,
    create_loader,
    describe,
    make_task,
    num_classes_of,
    open_validation,
)
from kdkit.training.config import DistillConfig
from kdkit.training.logger import FILES
from kdkit.training.preflight import PreflightReport, preflight
from kdkit.training.report import TrainReport
from kdkit.training.run import CONFIG, SKIPPED, SkipRecord, create_logger, run_identity
from kdkit.training.setup import start_average
from kdkit.training.student import STUDENT
from kdkit.training.trackers import TENSORBOARD
from kdkit.training.train import train

_logger = logging.getLogger(__name__)
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
    if distributed.restarted():  # what an earlier start left is this run's own: it is gone on with, not replaced
        config = dataclasses.replace(config, resume=True, overwrite=False)
    device = resolve_device(config.device)
    cache = None if config.cache is None else open_cache(config.cache)
    if cache is not None and config.task != "feature":
        cache.check_exists(LOGITS)
    dataset = resolve_dataset(config.data, choose_recipe(config, cache), cache)
    if config.unreadable == "skip":
        dataset = dataset.skipping_unreadable()
    if cache is not None:
        cache.match(dataset, allow_mismatch=config.allow_mismatch)
        if not cache.names_classes:
            _logger.warning("the data's class folders are not the cache's classes: no label takes part in the loss")
            dataset = dataset.without_labels()
    validation = None if config.validation is None else open_validation(config.validation, dataset)
    if validation is not None and config.unreadable == "skip":
        validation = validation.skipping_unreadable()
    task = make_task(config, dataset, cache, device)
    num_classes = num_classes_of(task)
    if cache is not None:
        cache.streams = tuple(stream for stream in cache.streams if stream in (LOGITS, *task.taps))
    live = task.teacher  # None where the student's average will teach, which sees what the student sees
    shown_views = dataset if live is None else dataset.with_teacher_view()
    loader = create_loader(shown_views, task, config, device, shuffle=True)
    output = distributed.on_rank_zero(
        lambda: prepare_output(
            config.output, _FILES, overwrite=config.overwrite, checkpoints=(LAST, PREVIOUS) if config.resume else None
        )
    )
    checkpoints = Checkpoints(
        output,
        run_identity(config, dataset, cache, live),
        resume=config.resume,
        describe=lambda: describe(config, dataset, num_classes, output),
    )
    loader.on_skip = SkipRecord(output)
    held_out = None if validation is None else create_loader(validation, task, config, device, shuffle=False)
    if held_out is not None:
        held_out.on_skip = loader.on_skip
    source = live if cache is None else cache
    resumes = config.resume and (checkpoints.last.exists() or checkpoints.previous.exists())
    shown = show_progress and distributed.rank() == 0
    seen = None
    start_average(task, config.train)
    if config.preflight and not resumes:
        seen = preflight(task, loader, source, config.train, card_top1=card_top1(task, cache, num_classes))
        if shown:
            print(seen, file=sys.stderr, flush=True)
    total = config.train.epochs * loader.num_images * distributed.world_size()
    logger = create_logger(config, output) if distributed.rank() == 0 else None
    random_seed(
        config.train.seed, distributed.rank()
    )  # what a student draws, such as dropout, differs from rank to rank
    try:
        with progress(f"distilling {config.student}", total, "images", enabled=shown) as display:
            training = train(
                task,
                loader,
                config.train,
                teacher_source=source,
                validation=held_out,
                logger=logger,
                display=display,
                checkpoints=checkpoints,
            )
    finally:
        if logger is not None:
            logger.close()
    return DistillReport(output, checkpoints.last, training, seen)
