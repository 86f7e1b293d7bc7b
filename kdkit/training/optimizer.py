"""timm's optimisers and schedules, created from a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.plateau_lr import PlateauLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from kdkit.errors import (
    ConfigError,
    DeviceMemoryError,
    KdkitError,
    MissingDependencyError,
    UnknownNameError,
    first_line,
    nearest,
)
from kdkit.runtime import distributed
from kdkit.runtime.memory import is_out_of_memory
from kdkit.training.config import TrainConfig

SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "plateau", "none")
_UPDATES, _PATIENCE = "update", "patience"


def create_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """timm's optimiser over the unwrapped `model`.

    Raises:
        UnknownNameError: timm has no optimiser of that name.
        ConfigError: it does not take one of the options.
    """
    if config.opt not in list_optimizers():
        raise UnknownNameError(f"timm has no optimiser {config.opt!r}{nearest(config.opt, list_optimizers())}")
    try:
        optimizer: Optimizer = create_optimizer_v2(
            model,
            config.opt,
            lr=config.lr,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            **config.opt_options,
        )
    except ImportError as error:
        raise MissingDependencyError(f"the optimiser {config.opt!r} cannot be used: {first_line(error)}") from error
    except Exception as error:  # optimisers check their options by assertions, by comparisons, or not at all
        raise ConfigError(f"the optimiser {config.opt!r} does not take these options: {first_line(error)}") from error
    if is_second_order(optimizer):
        _check_second_order(config)
    return optimizer


def is_second_order(optimizer: Optimizer) -> bool:
    """Whether an optimiser differentiates the gradients, so that `backward` must keep their graph."""
    return bool(getattr(optimizer, "is_second_order", False))


def _check_second_order(config: TrainConfig) -> None:
    """Raises ConfigError where the gradients of a second-order optimiser cannot be differentiated."""
    reasons = {
        "compile": config.compile,
        "amp float16, whose loss is scaled": config.amp == "float16",
        f"{distributed.world_size()} ranks": distributed.world_size() > 1,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ConfigError(
                f"the optimiser {config.opt!r} differentiates the gradients, which does not work with {reason}: take "
                "another optimiser, or leave that out"
            )


@contextmanager
def schedule_errors(config: TrainConfig) -> Iterator[None]:
    """Within the context, what a schedule raises, which timm gives its options unchecked, is a one-line error."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the schedule {config.sched!r} does not work with these options: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


@contextmanager
def optimizer_errors(config: TrainConfig) -> Iterator[None]:
    """Within the context, what an optimiser's step raises is a one-line error that names the optimiser."""
    try:
        yield
    except KdkitError:
        raise
    except Exception as error:
        if first_line(error).startswith("DataLoader worker"):  # its death is raised from any statement
            raise
        if is_out_of_memory(error):
            raise DeviceMemoryError(
                f"the optimiser {config.opt!r} has not enough memory for its state ({first_line(error)}): take one "
                "with less state, such as sgd, or a smaller student"
            ) from error
        raise ConfigError(f"the optimiser {config.opt!r} cannot take a step here: {first_line(error)}") from error


def create_schedule(optimizer: Optimizer, config: TrainConfig, updates_per_epoch: int) -> Scheduler | None:
    """timm's schedule of the learning rate; None for the schedule `none`.

    Raises:
        UnknownNameError: timm has no schedule of that name.
        ConfigError: it does not take one of the options, or is not over when the run is.
    """
    if config.sched not in SCHEDULES:
        raise UnknownNameError(f"timm has no schedule {config.sched!r}{nearest(config.sched, SCHEDULES)}")
    if config.sched == "none":
        for name in ("layer_decay", "warmup_epochs", "sched_options"):
            if getattr(config, name):
                raise ConfigError(f"{name} acts through the schedule, and there is none: use the schedule 'constant'")
    if config.sched == "plateau" and config.sched_unit == _UPDATES:
        raise ConfigError("the schedule 'plateau' compares epochs: give sched_unit 'epoch' (--train.sched_unit epoch)")
    options: dict[str, Any] = {
        "num_epochs": config.epochs,
        "min_lr": config.min_lr,
        "warmup_epochs": config.warmup_epochs,
        "warmup_lr": config.lr / 100 if config.warmup_lr is None else config.warmup_lr,
        "step_on_epochs": config.sched_unit != _UPDATES,
        "updates_per_epoch": updates_per_epoch,
    }
    try:
        schedule, num_epochs = create_scheduler_v2(optimizer, config.sched, **{**options, **config.sched_options})
    except Exception as error:  # schedules check their options by assertions, by arithmetic, or not at all
        raise ConfigError(f"the schedule {config.sched!r} does not take these options: {first_line(error)}") from error
    if schedule is not None and num_epochs > config.epochs:
        raise ConfigError(
            f"the schedule {config.sched!r} with its warm-up and cooldown takes {num_epochs} epochs, the run "
            f"{config.epochs}: give epochs={num_epochs}, and num_epochs={config.epochs} in sched_options"
        )
    return schedule


def schedule_state(schedule: Scheduler) -> dict[str, Any]:
    """The schedule's state; for `plateau` with the patience, which timm's own state leaves out."""
    state: dict[str, Any] = schedule.state_dict()
    if isinstance(schedule, PlateauLRScheduler):
        state |= {_PATIENCE: schedule.lr_scheduler.state_dict(), "restore_lr": schedule.restore_lr}
    return state


def load_schedule_state(schedule: Scheduler, state: Mapping[str, Any]) -> None:
    """Inverse of `schedule_state`."""
    schedule.load_state_dict(dict(state))
    if isinstance(schedule, PlateauLRScheduler):
        schedule.lr_scheduler.load_state_dict(state[_PATIENCE])
        schedule.restore_lr = state["restore_lr"]
