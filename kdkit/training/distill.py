"""Training a student by configuration: from a cache, from a live teacher, or from labels alone."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import random_seed

from kdkit.cache import CacheReader, open_cache
from kdkit.cache.format.constants import LOGITS
from kdkit.data import ReplayedDataset, ReplayLoader
from kdkit.data.ranks import open_on_all_ranks
from kdkit.dataset import open_dataset, records_of
from kdkit.resolve import resolve_device
from kdkit.runtime import distributed
from kdkit.runtime.agreement import check_same_settings
from kdkit.runtime.hardware import fast_kernels
from kdkit.runtime.layout import print_labelled, print_wrapped
from kdkit.runtime.output import prepare_output
from kdkit.runtime.progress import progress
from kdkit.student import BEST, LAST, STUDENT
from kdkit.tasks import DistillationTask, TrainingTask
from kdkit.training.checkpoint import PREVIOUS, Checkpoints
from kdkit.training.components import (
    card_top1,
    check_validation,
    choose_recipe,
    create_loader,
    describe,
    live_teacher_of,
    make_task,
    num_classes_of,
    open_validation,
)
from kdkit.training.config import DistillConfig
from kdkit.training.header import describe_run, doubts_of
from kdkit.training.labels import LabelRecord, adapt_to_labels, class_names_of
from kdkit.training.loading import resumes, settle_views_per_decode
from kdkit.training.logger import FILES
from kdkit.training.preflight import PreflightReport, preflight
from kdkit.training.report import TrainReport
from kdkit.training.run import CONFIG, SKIPPED, SkipRecord, create_logger, run_identity
from kdkit.training.setup import start_average
from kdkit.training.trackers import TENSORBOARD
from kdkit.training.train import train
from kdkit.types import TeacherSource

_logger = logging.getLogger(__name__)
_FILES = (*FILES, LAST, BEST, PREVIOUS, CONFIG, STUDENT, TENSORBOARD, SKIPPED)


@dataclass(frozen=True)
class DistillReport:
    """The result of a training run."""

    output: Path
    """Folder of the checkpoints and the metrics."""
    checkpoint: Path
    """The newest checkpoint, with the student's weights in the layout of timm's checkpoints."""
    weights: Path
    """The checkpoint with the best top-1; the newest without validation images."""
    training: TrainReport
    """Accuracy, time and terms."""
    preflight: PreflightReport | None
    """Measurements before the first step; None for a resumed run, or without the preflight check."""


@dataclass(frozen=True)
class _Run:
    """The parts of a run that its configuration names."""

    config: DistillConfig
    device: torch.device
    cache: CacheReader | None
    dataset: ReplayedDataset
    validation: ReplayedDataset | None
    task: TrainingTask

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the student's classes."""
        return class_names_of(self.dataset, self.cache, live_teacher_of(self.task))

    def identity(self) -> dict[str, Any]:
        """The settings that all ranks share, and that a resumed run shares with the stopped one."""
        return run_identity(self.config, self.dataset, self.cache, live_teacher_of(self.task))

    @property
    def source(self) -> TeacherSource | None:
        """Where the teacher's outputs come from."""
        return live_teacher_of(self.task) if self.cache is None else self.cache


def distill(config: DistillConfig, *, show_progress: bool = False) -> DistillReport:
    """Trains the student of `config`; in a run of several ranks, every rank calls this.

    Args:
        config: data, student, and a cache, a live teacher or neither.
        show_progress: whether rank 0 shows the run's description and its progress on standard error.

    Raises:
        KdkitError: a child of it for each thing that does not fit; see kdkit.errors.
        SystemExit, KeyboardInterrupt: SIGTERM or SIGINT came; a checkpoint was written.
    """
    if distributed.is_restarted():  # an earlier start's output is this run's own: resume it
        config = dataclasses.replace(config, resume=True, overwrite=False)
    run = _open(config)
    start_average(run.task, config.train)
    config, views = settle_views_per_decode(run.config, _shown(run), run.task, run.source, run.device)
    run = dataclasses.replace(run, config=config)
    kept = (LAST, PREVIOUS) if config.resume else None
    output = distributed.on_rank_zero(
        lambda: prepare_output(config.output, _FILES, overwrite=config.overwrite, checkpoints=kept)
    )
    checkpoints = Checkpoints(
        output,
        run.identity(),
        labels=LabelRecord.of(run.dataset),
        resume=config.resume,
        describe=lambda: describe(config, run.dataset, run.task, run.class_names, output),
    )
    loader, held_out = _create_loaders(run, output)
    if distributed.rank() == 0:
        for doubt in doubts_of(config, run.dataset, len(loader)):
            _logger.warning("kdkit: warning: %s", doubt)
    shown = show_progress and distributed.rank() == 0
    if shown:
        header = describe_run(config, run.task, run.dataset, run.validation, run.cache, run.device)
        print_labelled({**header, "views": f"{header['views']}, {views}"}, file=sys.stderr)
    seen = None if resumes(config) or not config.preflight else _check_first_step(run, loader, shown)
    training = _train(run, loader, held_out, checkpoints, shown)
    best = checkpoints.best if checkpoints.best.exists() else checkpoints.last
    return DistillReport(output, checkpoints.last, best, training, seen)


def _open(config: DistillConfig) -> _Run:
    """Cache, images and task, each checked against the others; of several ranks, all the same."""
    device = resolve_device(config.device)
    cache = distributed.run_on_all_ranks(lambda: _open_cache(config))
    dataset = open_on_all_ranks(lambda: _open_images(config, cache))
    validation = None
    if config.validation is not None:
        validation = open_on_all_ranks(lambda: open_validation(config, dataset.recipe))
    run = distributed.run_on_all_ranks(lambda: _create_run(config, device, cache, dataset, validation))
    check_same_settings(run.identity)
    return run


def _open_images(config: DistillConfig, cache: CacheReader | None) -> ReplayedDataset:
    """The training images in their views."""
    recipe = choose_recipe(config, cache)
    dataset = open_dataset(config.data, recipe=recipe, records=records_of(cache), **config.columns)
    return dataset.skipping_unreadable() if config.unreadable == "skip" else dataset


def _create_run(
    config: DistillConfig,
    device: torch.device,
    cache: CacheReader | None,
    dataset: ReplayedDataset,
    validation: ReplayedDataset | None,
) -> _Run:
    """The task, and the parts of the run checked against one another."""
    if cache is not None:
        dataset = dataset.without(cache.absent_keys)
        cache.match(dataset, allow_mismatch=config.allow_mismatch)
        if not cache.names_classes:
            _logger.warning("the data's class folders are not the cache's classes: no label takes part in the loss")
            dataset = dataset.without_labels()
    config = adapt_to_labels(config, dataset)
    task = make_task(config, dataset, cache, device)
    if cache is not None:
        taps = task.taps if isinstance(task, DistillationTask) else ()
        for tap in taps:
            cache.check_exists(tap)
        cache.streams = tuple(stream for stream in cache.streams if stream in (LOGITS, *taps))
    run = _Run(config, device, cache, dataset, validation, task)
    if validation is not None:
        check_validation(config, validation, dataset, run.class_names, num_classes_of(task))
    return run


def _shown(run: _Run) -> ReplayedDataset:
    """The training images as the loader shows them."""
    return run.dataset if live_teacher_of(run.task) is None else run.dataset.with_teacher_view()


def _open_cache(config: DistillConfig) -> CacheReader | None:
    """The cache of the run, or the average of several; None without one."""
    if not config.caches:
        return None
    cache: CacheReader = (
        open_cache(config.caches[0])
        if len(config.caches) == 1
        else open_cache(config.caches, weights=config.cache_weights, temperatures=config.cache_temperatures)
    )
    if config.task_kind != "feature":
        cache.check_exists(LOGITS)
    return cache


def _create_loaders(run: _Run, output: Path) -> tuple[ReplayLoader, ReplayLoader | None]:
    """The loaders of the training and of the validation images, which record what they skip."""
    loader = create_loader(_shown(run), run.task, run.config, run.device, shuffle=True)
    loader.on_skip = SkipRecord(output)
    if run.validation is None:
        return loader, None
    held_out = create_loader(run.validation, run.task, run.config, run.device, shuffle=False)
    held_out.on_skip = loader.on_skip
    return loader, held_out


def _check_first_step(run: _Run, loader: ReplayLoader, shown: bool) -> PreflightReport:
    cited = card_top1(run.task, run.cache, num_classes_of(run.task))
    seen = preflight(run.task, loader, run.source, run.config.train, card_top1=cited)
    if shown:
        print_wrapped(str(seen), file=sys.stderr)
    return seen


def _train(
    run: _Run, loader: ReplayLoader, held_out: ReplayLoader | None, checkpoints: Checkpoints, shown: bool
) -> TrainReport:
    config = run.config
    total = config.train.epochs * loader.num_images * distributed.world_size()
    logger = create_logger(config, checkpoints.folder) if distributed.rank() == 0 else None
    random_seed(config.train.seed, distributed.rank())  # a student's draws, such as dropout, differ from rank to rank
    try:
        title = f"training {config.student} in {checkpoints.folder}"
        with fast_kernels(run.device), progress(title, total, "images", enabled=shown) as display:
            return train(
                run.task,
                loader,
                config.train,
                teacher_source=run.source,
                validation=held_out,
                logger=logger,
                display=display,
                checkpoints=checkpoints,
            )
    finally:
        if logger is not None:
            logger.close()
