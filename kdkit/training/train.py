"""The training loop: epochs, steps, logs, checkpoints and stops, in the order in which they happen.

One step is in step.py; checkpoints are in checkpoint.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from timm.utils import unwrap_model
from torch import Tensor

from kdkit.data import ReplayLoader, translate_worker_errors
from kdkit.runtime import distributed
from kdkit.runtime.progress import Display
from kdkit.tasks import TrainingTask
from kdkit.training.checkpoint import Checkpoints
from kdkit.training.config import TrainConfig
from kdkit.training.evaluate import evaluate_each
from kdkit.training.finite import first_non_finite, non_finite_loss
from kdkit.training.frozen import FrozenBody
from kdkit.training.interrupt import StopAgreement, StopRequest, stop_request
from kdkit.training.labels import check_targets, labelled_batches
from kdkit.training.logger import RunLogger
from kdkit.training.meter import Meter, Record
from kdkit.training.optimizer import create_optimizer, create_schedule, schedule_errors
from kdkit.training.report import TrainReport, epoch_line, main_metric, waiting_advice
from kdkit.training.setup import autocast_dtype, check_trainable, prepare
from kdkit.training.state import Position, RunState
from kdkit.training.step import TrainingStep, choose_source
from kdkit.training.warmup import DistillWarmup
from kdkit.types import Batch, TeacherSource


def train(
    task: TrainingTask,
    loader: ReplayLoader,
    config: TrainConfig,
    *,
    teacher_source: TeacherSource | None = None,
    validation: ReplayLoader | None = None,
    logger: RunLogger | None = None,
    display: Display | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainReport:
    """Trains `task` for `config.epochs` epochs; in a run of several ranks every rank calls this, with its images.

    Args:
        task: what a step computes; its trainable module must be on the loader's device.
        loader: training batches, from an EpochSampler.
        config: optimiser, schedule and loop.
        teacher_source: a live teacher or a cache, whose outputs the task gets; by default the task's own teacher.
        validation: batches to evaluate the student on after each epoch.
        logger: takes the terms of every step and epoch; on rank 0 only.
        display: shows the progress.
        checkpoints: where checkpoints are written, and whether the run resumes from one. With it, SIGTERM and SIGINT
            end the run after a step, or a batch of the validation, with a checkpoint: SystemExit(143) or
            KeyboardInterrupt.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite; names the step, its terms and the checkpoint from before.
        ConfigError, UnknownNameError: a setting is invalid, or the task takes no such targets; before the first step.
        LabelError: a label is out of range; names the sample.
        CheckpointError: the checkpoint cannot be read, or is another run's.
        DiskFullError, WriteError: a checkpoint cannot be written.
    """
    check_targets(task, loader.dataset)
    return _Loop(task, loader, config, teacher_source, validation, logger, display or Display(), checkpoints).run()


class _Loop:
    """One run of the loop, with the state that its epochs share."""

    def __init__(
        self,
        task: TrainingTask,
        loader: ReplayLoader,
        config: TrainConfig,
        source: TeacherSource | None,
        validation: ReplayLoader | None,
        logger: RunLogger | None,
        display: Display,
        checkpoints: Checkpoints | None,
    ) -> None:
        check_trainable(config, len(loader), validation)
        self.task, self.loader, self.config, self.validation = task, loader, config, validation
        self.logger, self.display, self.checkpoints = logger, display, checkpoints
        self.num_batches = len(loader)
        self.updates_per_epoch = math.ceil(self.num_batches / config.accumulate)
        optimizer = create_optimizer(unwrap_model(task.get_trainable_module()), config)
        scheduler = create_schedule(optimizer, config, self.updates_per_epoch)
        scaler = torch.amp.GradScaler(loader.device.type, enabled=autocast_dtype(config) == torch.float16)
        self.distill_weight = DistillWarmup(task, config.distill_warmup_epochs * self.updates_per_epoch)
        self.frozen_body = FrozenBody(task, config.frozen_epochs, loader.device)
        prepare(task, config, loader.device)
        self.state = RunState(task, optimizer, scheduler, scaler, loader.device)
        self.step = TrainingStep(self.state, config, choose_source(task, source, loader.normalization))
        self.is_advised = False
        self.meter: Meter  # of the current epoch
        self.stop: StopRequest
        self.should_stop: StopAgreement

    def run(self) -> TrainReport:
        """Resumes from a checkpoint if there is one, and trains the remaining epochs."""
        self._restore()
        stops = stop_request(enabled=self.checkpoints is not None)
        with stops as self.stop, translate_worker_errors(), self.distill_weight, self.frozen_body:
            self.should_stop = StopAgreement(self.stop)
            for epoch in range(self.state.position.epoch, self.config.epochs):
                self._train_epoch(epoch)
                self._finish_epoch(epoch, self._epoch_record())
        return TrainReport.of(self.state.records)

    def _train_epoch(self, epoch: int) -> None:
        """Trains every step of an epoch, or the steps that a resumed run has left."""
        state, config = self.state, self.config
        self.loader.set_epoch(epoch, state.position.batch)
        self.task.train()
        self.frozen_body.begin(epoch)
        self.meter = Meter(state.sums)
        batches = self.meter.timed(iter(labelled_batches(self.loader, self.task)))
        for number, batch in enumerate(batches, start=state.position.batch):
            first_of_group = number - number % config.accumulate
            group_size = min(config.accumulate, self.num_batches - first_of_group)
            is_update = number == first_of_group + group_size - 1
            is_due = is_update and _is_due(number + 1, first_of_group, self.num_batches, config.log_every)
            self.distill_weight.set(state.position.update)
            result, norms = self.step.backward(
                batch, group_size=group_size, is_update=is_update, log_gradients=config.log_gradients and is_due
            )
            self._record_step(epoch, number, batch, result)
            if is_update:
                self.step.update()
                state.position = Position(epoch, number + 1, state.position.update)
                self._finish_update(norms, is_due=is_due, is_last=number == self.num_batches - 1)

    def _record_step(self, epoch: int, number: int, batch: Batch, result: Mapping[str, Tensor]) -> None:
        """Adds a step's terms to the meter, without waiting for the device."""
        num_images = len(batch.input)
        at = {"epoch": epoch, "step": epoch * self.num_batches + number, "lr": self._learning_rate()}
        self.meter.add(result, num_images, at)
        self.display(num_images * distributed.world_size())

    def _finish_update(self, norms: Mapping[str, Tensor], *, is_due: bool, is_last: bool) -> None:
        """After an update of the weights: logs and writes a checkpoint if due, stops if a signal arrived."""
        every = self.config.checkpoint_every
        stopping = self.should_stop(now=is_last)  # before the validation, which may take long
        saving = stopping or (every > 0 and self.state.position.update % every == 0)
        if is_due or saving:
            self._flush_metrics(norms)
        if saving:
            self.state.sums = self.meter.sums
            self._save()
            self.meter.restart_clock()
        if stopping:
            self.stop.exit()

    def _flush_metrics(self, norms: Mapping[str, Tensor]) -> None:
        """Copies pending step metrics to the host, logs them, and raises on a non-finite loss."""
        records = self.meter.flush()
        bad = first_non_finite(records)
        good = records[:bad]
        if bad is None and good:
            good[-1] |= {name: float(value) for name, value in norms.items()}
        if self.logger is not None:
            self.logger.log_steps(good)
        if good:
            self.display.set_postfix(good[-1])
        if bad is not None:
            raise non_finite_loss(records[bad], self._checkpoint_before(records[bad]))

    def _epoch_record(self) -> Record:
        """Means of the epoch's terms, and the metrics of the validation."""
        record = self.meter.mean() | {"lr": self._learning_rate()}
        if self.validation is not None:
            self.state.sums = self.meter.sums
            amp = autocast_dtype(self.config)
            record |= evaluate_each(self.task, self.validation, amp=amp, between=self._stop_if_requested)
        return record

    def _finish_epoch(self, epoch: int, record: Record) -> None:
        """Logs the epoch and writes its checkpoint and, if the metric improved, the best checkpoint."""
        state = self.state
        metric = main_metric(record)
        if state.scheduler is not None:
            with schedule_errors(self.config):
                state.scheduler.step(epoch + 1, metric)
        if self.logger is not None:
            self.logger.log_epoch({"epoch": epoch, **record}, step=(epoch + 1) * self.num_batches - 1)
        self.display.write(epoch_line(epoch, self.config.epochs, record))
        self._advise(record)
        state.records.append(record)
        is_best = metric is not None and not math.isnan(metric) and (state.best is None or metric > state.best)
        state.best = metric if is_best else state.best
        state.position, state.sums = Position(epoch + 1, 0, state.position.update), {}
        self._save(is_best=is_best, metric=metric)
        if self.should_stop(now=True):
            self.stop.exit()

    def _advise(self, record: Record) -> None:
        """Says once in a run what to do where the loop waits for images."""
        if not self.is_advised and (advice := waiting_advice(record)) is not None:
            self.is_advised = True
            self.display.write(advice)

    def _stop_if_requested(self) -> None:
        """Between batches of a validation; the resumed run repeats the validation."""
        if self.should_stop():
            self._save()
            self.stop.exit()

    def _save(self, *, is_best: bool = False, metric: float | None = None) -> None:
        if self.checkpoints is not None:
            self.state.log = {} if self.logger is None else self.logger.position()
            self.checkpoints.save(self.state, is_best=is_best, metric=metric)

    def _restore(self) -> None:
        if self.checkpoints is None or not self.checkpoints.restore(self.state, with_log=self.logger is not None):
            return
        batches = self.state.position.epoch * self.num_batches + self.state.position.batch
        self.display.set_completed(batches * self.config.batch_size * distributed.world_size())
        if self.logger is not None:
            self.logger.rewind(self.state.log)
        self.display.write(
            f"resumed in epoch {self.state.position.epoch + 1}, after {self.state.position.batch} batches"
        )

    def _checkpoint_before(self, record: Record) -> Path | None:
        """The newest checkpoint with a finite loss, if this record's step is the first with a non-finite loss."""
        epoch, step = int(record["epoch"]), int(record["step"])
        updates = epoch * self.updates_per_epoch + (step - epoch * self.num_batches) // self.config.accumulate
        return None if self.checkpoints is None else self.checkpoints.before_update(updates)

    def _learning_rate(self) -> float:
        """Largest learning rate over all parameter groups."""
        return max(float(group["lr"]) for group in self.state.optimizer.param_groups)


def _is_due(done: int, before: int, num_batches: int, log_every: int) -> bool:
    """Whether metrics are logged after an update that brings the epoch's finished batches from `before` to `done`.

    It depends on nothing else: a resumed run logs after the same updates as an undisturbed one.
    """
    return done == num_batches or done // log_every > before // log_every
