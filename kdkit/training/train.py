"""The training loop: one file, read from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from timm.utils import dispatch_clip_grad, unwrap_model
from torch import Tensor

from kdkit.data import ReplayLoader, translate_worker_errors
from kdkit.errors import ConfigError
from kdkit.runtime import distributed
from kdkit.runtime.progress import Display
from kdkit.tasks import TrainingTask, gradient_norms
from kdkit.teachers import Teacher
from kdkit.training.checkpoint import Checkpoints
from kdkit.training.config import TrainConfig
from kdkit.training.evaluate import evaluate_each
from kdkit.training.finite import NonFiniteLossError, first_bad
from kdkit.training.interrupt import StopAgreement, stop_request
from kdkit.training.logger import RunLogger
from kdkit.training.meter import Meter
from kdkit.training.optimizer import create_optimizer, create_schedule
from kdkit.training.report import TrainReport, epoch_line
from kdkit.training.setup import prepare, to_memory_format
from kdkit.training.state import Position, RunState
from kdkit.training.warmup import DistillWarmup
from kdkit.types import TeacherSource


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
    """Trains `task` for `config.epochs` epochs.

    In a run of several ranks (torch.distributed is initialised) every rank calls this, with its share of the images.

    Args:
        task: what a step computes; its trainable module must be on the loader's device.
        loader: training batches, from an EpochSampler.
        config: optimiser, schedule and loop.
        teacher_source: whose outputs are handed to the task, e.g. a cache; by default the task's own teacher, if any.
        validation: batches to evaluate the student on after each epoch.
        logger: where the terms of every step and epoch go; rank 0's.
        display: who is shown how far the run is.
        checkpoints: where checkpoints go, and what to go on from. With it, SIGTERM and SIGINT end the run after a step,
            or a batch of the validation, with a checkpoint: SystemExit(143), KeyboardInterrupt.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite; names the step and its terms. Checkpoints are older than it.
        ConfigError, UnknownNameError: a setting that cannot work; before the first step.
        CheckpointError: the checkpoint cannot be read, or is another run's.
    """
    num_batches, world_size = len(loader), distributed.world_size()
    _check_trainable(config, num_batches, validation)
    display = display or Display()
    optimizer = create_optimizer(unwrap_model(task.get_trainable_module()), config)
    updates_per_epoch = math.ceil(num_batches / config.accumulate)
    scheduler = create_schedule(optimizer, config, updates_per_epoch)
    amp = None if config.amp is None else getattr(torch, config.amp)
    scaler = torch.amp.GradScaler(loader.device.type, enabled=amp == torch.float16)
    distill_weight = DistillWarmup(task, config.distill_warmup_epochs * updates_per_epoch)
    prepare(task, config, loader.device)
    if teacher_source is None:
        teacher_source = task.live_teacher  # run by the loop, it also takes a batch's own view for the teacher
    if isinstance(teacher_source, Teacher):  # as the task does with its own: the images are in the student's terms
        teacher_source = teacher_source.for_input(loader.normalization)  # only now, so that it is compiled too
    state = RunState(task, optimizer, scheduler, scaler, loader.device)
    if checkpoints is not None and checkpoints.restore(state):
        display.set_completed(
            (state.position.epoch * num_batches + state.position.batch) * config.batch_size * world_size
        )
        if logger is not None:
            logger.rewind(state.log)

    def save(**how: Any) -> None:
        if checkpoints is not None:
            state.log = {} if logger is None else logger.position()
            checkpoints.save(state, **how)

    def flush_metrics(meter: Meter, norms: Mapping[str, Tensor]) -> None:
        """Copies pending step metrics to the host, logs them, and raises on a non-finite loss."""
        records = meter.flush()
        bad = first_bad(records)
        good = records[:bad]
        if bad is None and good:
            good[-1] |= {name: float(value) for name, value in norms.items()}
        if logger is not None:
            logger.log_steps(good)
        if good:
            display.set_postfix(good[-1])
        if checkpoints is not None and records:
            if bad == 0:  # the first step of the newest checkpoint's weights
                checkpoints.withdraw()
            else:
                checkpoints.confirm()
        if bad is not None:
            raise NonFiniteLossError.at(records[bad], None if checkpoints is None else checkpoints.last)

    with stop_request(enabled=checkpoints is not None) as stop, translate_worker_errors(), distill_weight:
        should_stop = StopAgreement(stop)

        def leave_if_told() -> None:
            """During a validation; the run that goes on begins it again."""
            if should_stop():
                save()
                stop.exit()

        for epoch in range(state.position.epoch, config.epochs):
            loader.set_epoch(epoch, state.position.batch)
            task.train()
            meter = Meter(state.sums)
            for number, batch in enumerate(loader, start=state.position.batch):
                first_of_group = number - number % config.accumulate
                group = min(config.accumulate, num_batches - first_of_group)
                is_update = number == first_of_group + group - 1
                distill_weight.set(state.position.update)
                batch = to_memory_format(batch, config)
                with nullcontext() if is_update else task.no_sync():
                    said = () if teacher_source is None else (teacher_source(batch),)
                    with torch.autocast(loader.device.type, dtype=amp, enabled=amp is not None):
                        result = task(batch.input, batch.target, *said)
                    is_due = is_update and _is_due(number + 1, first_of_group, num_batches, config.log_every)
                    norms = gradient_norms(task, result) if config.log_gradients and is_due else {}
                    scaler.scale(result["loss"] / group).backward()
                at = {"epoch": epoch, "step": epoch * num_batches + number, "lr": _learning_rate(optimizer)}
                meter.add(result, len(batch.input), at)
                display(len(batch.input) * world_size)
                if not is_update:
                    continue

                if config.clip_grad is not None:
                    scaler.unscale_(optimizer)
                    parameters = task.get_clip_parameters(exclude_head=config.clip_mode == "agc")
                    dispatch_clip_grad(parameters, config.clip_grad, mode=config.clip_mode)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                state.position = Position(epoch, number + 1, state.position.update + 1)
                _update_ema(task, state.position.update)
                if scheduler is not None:
                    scheduler.step_update(state.position.update)

                stopping = should_stop(now=number == num_batches - 1)  # then, before the validation
                saving = stopping or (config.checkpoint_every and state.position.update % config.checkpoint_every == 0)
                if is_due or saving:
                    flush_metrics(meter, norms)
                if saving:
                    state.sums = meter.sums
                    save()
                    meter.restart_clock()
                if stopping:
                    stop.exit()

            record = meter.mean() | {"lr": _learning_rate(optimizer)}
            if validation is not None:
                state.sums = meter.sums
                record |= evaluate_each(task, validation, amp=amp, between=leave_if_told)
            metric = record.get("val_ema_top1", record.get("val_top1"))
            if scheduler is not None:
                scheduler.step(epoch + 1, metric)
            if logger is not None:
                logger.log_epoch({"epoch": epoch, **record}, step=(epoch + 1) * num_batches - 1)
            display.write(epoch_line(epoch, config.epochs, record))
            state.records.append(record)
            is_best = metric is not None and (state.best is None or metric > state.best)
            state.best = metric if is_best else state.best
            state.position, state.sums = Position(epoch + 1, 0, state.position.update), {}
            save(is_best=is_best, metric=metric)
            if should_stop(now=True):
                stop.exit()
    if checkpoints is not None:
        checkpoints.confirm()
    return TrainReport.of(state.records)


def _check_trainable(config: TrainConfig, num_batches: int, validation: ReplayLoader | None) -> None:
    if num_batches == 0:
        raise ConfigError(f"there is no batch of {config.batch_size} images to train on: lower the batch size")
    counts = distributed.gather(0 if validation is None else len(validation))
    if len(set(counts)) > 1:  # the ranks ask each other between batches whether to stop
        raise ConfigError(f"ranks validate on equally many batches, got {counts}: EpochSampler pads to that")
    if config.sched == "plateau" and validation is None:
        raise ConfigError("the schedule 'plateau' waits for a metric to stand still: give validation images")


def _update_ema(task: TrainingTask, update: int) -> None:
    """Moves the average; where it teaches, each rank's would else have the running statistics of its own images."""
    task.update_ema(step=update)
    ema = task.get_trainable_module(ema=True)
    if ema is not None and task.is_own_teacher:
        distributed.share_buffers(ema)


def _is_due(done: int, before: int, num_batches: int, log_every: int) -> bool:
    """Whether an update that brings the epoch's batches from `before` to `done` ends with a look.

    It depends on nothing else: a run that was stopped looks after the same updates as one that was not.
    """
    return done == num_batches or done // log_every > before // log_every


def _learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """That of the layers which learn fastest."""
    return max(float(group["lr"]) for group in optimizer.param_groups)
