"""Training a student by configuration: from a cache, from a live teacher, or from labels alone."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import random_seed

from kdkit.cache import CacheMixture, CacheReader, ClassSelection
from kdkit.cache.format.constants import LOGITS
from kdkit.data import ReplayedDataset, ReplayLoader
from kdkit.data.ranks import open_on_all_ranks
from kdkit.dataset import describe_foreign_labels, has_foreign_labels, match_cache, open_dataset, records_of
from kdkit.resolve import resolve_device
from kdkit.runtime import distributed
from kdkit.runtime.agreement import check_same_settings
from kdkit.runtime.hardware import fast_kernels
from kdkit.runtime.layout import print_labelled, print_wrapped
from kdkit.runtime.output import check_not_input, held_output
from kdkit.runtime.progress import progress
from kdkit.student import BEST, LAST, STUDENT
from kdkit.tasks import DistillationTask, TrainingTask
from kdkit.training.checkpoint import PREVIOUS, Checkpoints
from kdkit.training.components import (
    card_top1,
    choose_recipe,
    create_loader,
    describe,
    make_task,
    num_classes_of,
)
from kdkit.training.config import DistillConfig
from kdkit.training.data_record import RunRecord
from kdkit.training.header import describe_run, doubts_of
from kdkit.training.labels import adapt_to_labels, class_names_of
from kdkit.training.live import live_part_of, live_teacher_of, settle_precision
from kdkit.training.loading import resumes, settle_views_per_decode
from kdkit.training.logger import FILES
from kdkit.training.preflight import PreflightReport, preflight
from kdkit.training.report import DistillReport, TrainReport
from kdkit.training.run import CONFIG, SKIPPED, SkipRecord, create_logger, inputs_of, run_identity
from kdkit.training.selection import ChosenClasses, ChosenSamples, choose_samples, open_caches
from kdkit.training.setup import start_average
from kdkit.training.trackers import TENSORBOARD
from kdkit.training.train import train
from kdkit.training.validation import check_validation, open_validation
from kdkit.types import Normalization, TeacherSource

_logger = logging.getLogger(__name__)
_FILES = (*FILES, LAST, BEST, PREVIOUS, CONFIG, STUDENT, TENSORBOARD, SKIPPED)


@dataclass(frozen=True)
class _Run:
    """The parts of a run that its configuration names."""

    config: DistillConfig
    device: torch.device
    cache: CacheReader | None
    dataset: ReplayedDataset
    samples: ChosenSamples
    validation: ReplayedDataset | None
    task: TrainingTask
    precision: str = ""
    """Of the live teacher; empty without one."""

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
    if config.overwrite:
        check_not_input(config.output, inputs_of(config))
    shown = show_progress and distributed.rank() == 0
    run = _open(config, show_progress=shown)
    start_average(run.task, config.train)
    config, views = settle_views_per_decode(run.config, _shown(run), run.task, run.source, run.device)
    run = dataclasses.replace(run, config=config)
    kept = (LAST, PREVIOUS) if config.resume else None
    with ExitStack() as held:
        folder = held_output(
            config.output, _FILES, overwrite=config.overwrite, checkpoints=kept, advice="--resume to go on with it, "
        )
        output = distributed.on_rank_zero(lambda: held.enter_context(folder))
        return _distill_in(output, run, views, shown)


def _distill_in(output: Path, run: _Run, views: str, shown: bool) -> DistillReport:
    """Trains the student of a run in its prepared output folder; `views` are described in the header."""
    config = run.config
    checkpoints = Checkpoints(
        output,
        run.identity(),
        record=distributed.run_on_all_ranks(lambda: RunRecord.of(run.dataset, run.validation)),
        resume=config.resume,
        describe=lambda: describe(config, run.dataset, run.task, run.class_names, output, run.cache),
    )
    loader, held_out = _create_loaders(run, output)
    if distributed.rank() == 0:
        for doubt in doubts_of(config, run.dataset, len(loader)):
            _logger.warning("kdkit: warning: %s", doubt)
    if shown:
        header = describe_run(
            config, run.task, run.dataset, run.validation, run.cache, run.device, run.samples, run.precision
        )
        print_labelled({**header, "views": f"{header['views']}, {views}"}, file=sys.stderr)
    seen = None if resumes(config) or not config.preflight else _check_first_step(run, loader, shown)
    training = _train(run, loader, held_out, checkpoints, shown)
    best = checkpoints.best if checkpoints.best.exists() else checkpoints.last
    return DistillReport(output, checkpoints.last, best, training, seen)


def _open(config: DistillConfig, *, show_progress: bool) -> _Run:
    """Cache, images and task, each checked against the others; of several ranks, all the same."""
    device = resolve_device(config.device)
    cache = distributed.run_on_all_ranks(lambda: open_caches(config, device))
    chosen = distributed.run_on_all_ranks(lambda: ChosenClasses.read(config))
    dataset = open_on_all_ranks(lambda: _open_images(config, cache, chosen.names))
    cache = distributed.run_on_all_ranks(lambda: chosen.select(cache, dataset))
    validation = None
    if config.validation is not None:
        validation = open_on_all_ranks(lambda: open_validation(config, dataset.recipe, chosen.names))
    run = distributed.run_on_all_ranks(lambda: _create_run(config, device, cache, dataset, validation))
    precision = settle_precision(run.config, run.task, run.cache, run.dataset)
    samples = choose_samples(config.train, cache, run.dataset, show_progress=show_progress)
    check_same_settings(run.identity)
    return dataclasses.replace(run, samples=samples, precision=precision)


def _open_images(
    config: DistillConfig, cache: CacheReader | None, class_names: Sequence[str] | None
) -> ReplayedDataset:
    """The training images of the chosen classes in their views."""
    recipe, records = choose_recipe(config, cache), records_of(cache)
    dataset = open_dataset(config.data, recipe=recipe, records=records, class_names=class_names, **config.columns)
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
        match_cache(cache, dataset, allow_mismatch=config.allow_mismatch)
        if has_foreign_labels(dataset, cache):
            _logger.warning("%s: no label takes part in the loss", describe_foreign_labels(dataset, cache))
            dataset = dataset.without_labels()
    config = adapt_to_labels(config, dataset)
    task = make_task(config, dataset, cache, device)
    if cache is not None:
        taps = task.taps if isinstance(task, DistillationTask) else ()
        for tap in taps:
            cache.check_exists(tap)
        cache.streams = tuple(stream for stream in cache.streams if stream in (LOGITS, *taps))
        if isinstance(cache, (CacheMixture, ClassSelection)):
            student: Any = task.get_eval_model()
            cache = cache.for_input(Normalization.of(student))
    run = _Run(config, device, cache, dataset, ChosenSamples(range(len(dataset)), None), validation, task)
    if validation is not None:
        check_validation(config, validation, dataset, run.class_names, num_classes_of(task))
    return run


def _shown(run: _Run) -> ReplayedDataset:
    """The training images as the loader shows them."""
    has_live = live_teacher_of(run.task) is not None or live_part_of(run.cache) is not None
    return run.dataset.with_teacher_view() if has_live else run.dataset


def _create_loaders(run: _Run, output: Path) -> tuple[ReplayLoader, ReplayLoader | None]:
    """The loaders of the training and of the validation images, which record what they skip."""
    loader = create_loader(_shown(run), run.task, run.config, run.device, shuffle=True, samples=run.samples)
    loader.on_skip = SkipRecord(output, run.dataset)
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
