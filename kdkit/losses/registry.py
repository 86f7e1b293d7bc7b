"""The registry of losses: each declares its requirements where it is defined, and is created by name."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from kdkit.errors import ConfigError, KdkitError, UnknownNameError, first_line, nearest
from kdkit.losses.projection import Projected
from kdkit.losses.standardize import standardized

Aligns = Literal["unlike", "maps", "tokens"]
"""How a pair of features is converted to a common layout. "unlike": to maps if one is tokens and the other a map, or if
their token counts differ, else unchanged; "maps": always to maps; "tokens": to tokens on the teacher's grid."""

_WIDTHS = ("student_width", "teacher_width")


@dataclass(frozen=True)
class LossSpec:
    """A loss and its requirements, declared once at its definition."""

    name: str
    """Name in `create`, in configurations and in a task's result."""

    loss: Callable[..., Any]
    """The function, or the class of a module that is called as the function."""

    is_feature: bool = False
    """Whether it compares features rather than logits."""

    multi_label: bool = False
    """Whether it compares multi-label logits: one distribution per class, not one over all classes."""

    needs_target: bool = False
    """Whether its third argument is the labels."""

    taps: Literal["single", "several"] = "single"
    """Whether it compares one pair of features, or lists of them, shallow to deep."""

    projects: bool = False
    """Whether it trains a projection, for which it receives the widths of its features: as `student_width` and
    `teacher_width`, or with several taps as lists, `student_widths` and `teacher_widths`."""

    needs_head: bool = False
    """Whether it receives the weight [C, D] of the teacher's classifier, as `head_weight`."""

    has_exits: bool = False
    """Whether it makes logits of the student's features and compares them with the teacher's: it receives
    `student_widths` and `num_classes`, and is called with the teacher's logits in place of its features."""

    needs_rows: bool = False
    """Whether it keeps something of every sample: it receives their number as `num_rows`, and is called with `row` [B],
    the number of each sample in the dataset, as the third argument."""

    aligns: Aligns = "unlike"
    """How its pairs of features are converted to a common layout before it is called."""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that `create` takes."""
        parameters = inspect.signature(self.loss).parameters.values()
        own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY or isinstance(self.loss, type)]
        return (*own, *self._added_options)

    @property
    def _added_options(self) -> tuple[str, ...]:
        if not self.is_feature:
            return ("standardize",)
        return () if isinstance(self.loss, type) or self.taps == "several" else _WIDTHS


_LOSSES: dict[str, LossSpec] = {}
_Loss = TypeVar("_Loss", bound=Callable[..., Any])


def logit_loss(*, needs_target: bool = False, multi_label: bool = False) -> Callable[[_Loss], _Loss]:
    """Registers a function of (student_logits, teacher_logits) under its own name.

    Args:
        needs_target: whether the labels, [B] or [B, C], are its third argument, `target`.
        multi_label: whether the logits are multi-label, and not normalised over the classes.
    """

    def register(loss: _Loss) -> _Loss:
        return _register(LossSpec(loss.__name__, loss, needs_target=needs_target, multi_label=multi_label), loss)

    return register


def feature_loss(
    name: str | None = None,
    *,
    taps: Literal["single", "several"] = "single",
    projects: bool = False,
    needs_target: bool = False,
    needs_head: bool = False,
    has_exits: bool = False,
    needs_rows: bool = False,
    aligns: Aligns = "unlike",
) -> Callable[[_Loss], _Loss]:
    """Registers a function of (student_feature, teacher_feature), or a class of modules with this call.

    Args:
        name: the loss's name; the function's own by default.
        taps, projects, needs_target, needs_head, has_exits, needs_rows, aligns: see LossSpec.
    """

    def register(loss: _Loss) -> _Loss:
        spec = LossSpec(
            name or loss.__name__,
            loss,
            is_feature=True,
            taps=taps,
            projects=projects,
            needs_target=needs_target,
            needs_head=needs_head,
            has_exits=has_exits,
            needs_rows=needs_rows,
            aligns=aligns,
        )
        return _register(spec, loss)

    return register


def _register(spec: LossSpec, loss: _Loss) -> _Loss:
    if spec.name in _LOSSES:
        raise ConfigError(f"two losses are called {spec.name!r}: give one of them another name")
    _LOSSES[spec.name] = spec
    return loss


def available() -> list[str]:
    """Returns the names that `create` takes, sorted."""
    return sorted(_LOSSES)


def loss_spec(name: str) -> LossSpec:
    """Returns the declaration of the loss called `name`.

    Raises:
        UnknownNameError: no loss has this name.
    """
    if name not in _LOSSES:
        known = ", ".join(available())
        raise UnknownNameError(f"no loss is called {name!r}; known: {known}{nearest(name, available())}")
    return _LOSSES[name]


def create(name: str, **options: Any) -> Callable[..., Tensor]:
    """Returns the loss called `name` with its options bound, e.g. `create("kl", temperature=4.0)`.

    A logit loss is called f(student_logits, teacher_logits), with `target` third if it needs labels;
    `standardize=True` puts logit standardisation before it. A feature loss is called f(student_feature,
    teacher_feature); `student_width` and `teacher_width` put a trainable projection before it. A loss of several taps
    takes lists of features on both sides. A loss with parameters comes as an nn.Module.

    Raises:
        UnknownNameError: no loss has this name.
        ConfigError: the loss has no such option, needs one that is missing, or cannot work with a value.
    """
    spec = loss_spec(name)
    _check_options(spec, options)
    if isinstance(spec.loss, type):
        module: nn.Module = _build(name, spec.loss, options)
        return module
    if not spec.is_feature:
        is_standardized = options.pop("standardize", False)
        bound = functools.partial(spec.loss, **options)
        if options:
            _try(spec, bound)
        return standardized(bound) if is_standardized else bound
    widths = {key: options.pop(key) for key in _WIDTHS if key in options}
    bound = functools.partial(spec.loss, **options)
    return _build(name, functools.partial(Projected, bound), widths) if widths else bound


def needs_target(loss: str | Callable[..., Tensor]) -> bool:
    """Returns whether a loss, by name or as `create` made it, takes the labels `target` as its third argument."""
    return loss_spec(loss).needs_target if isinstance(loss, str) else "target" in inspect.signature(loss).parameters


def compares_logits(name: str) -> bool:
    """Returns whether the loss called `name` compares something with the teacher's logits."""
    return not loss_spec(name).is_feature or loss_spec(name).has_exits


def is_feature_loss(name: str) -> bool:
    """Returns whether the loss called `name` compares features rather than logits."""
    return loss_spec(name).is_feature


def _check_options(spec: LossSpec, options: dict[str, Any]) -> None:
    for option, value in options.items():
        if option not in spec.options:
            accepted = ", ".join(spec.options) or "none"
            raise ConfigError(f"loss {spec.name!r} has no option {option!r}; it takes {accepted}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"loss {spec.name!r}: {option} must be a finite number, got {value}")


def _try(spec: LossSpec, loss: Callable[..., Tensor]) -> None:
    """Calls a logit loss on two rows, so that a wrong option fails before the first step of a training."""
    logits = torch.zeros(2, 3, device="cpu", dtype=torch.float32)
    target = (torch.zeros(2, device="cpu", dtype=torch.int64),) if spec.needs_target else ()
    try:
        with torch.no_grad():
            loss(logits, logits, *target)
    except ConfigError as error:
        raise ConfigError(f"loss {spec.name!r}: {error}") from error
    except TypeError as error:
        reason = first_line(error)
        raise ConfigError(f"loss {spec.name!r} cannot work with these options ({reason}): expected numbers") from error


def _build(name: str, build: Callable[..., Any], options: dict[str, Any]) -> Any:
    parameters = inspect.signature(build).parameters
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise ConfigError(f"loss {name!r} needs the option {missing[0]!r}, got {', '.join(options) or 'none'}")
    for option, value in options.items():
        default = parameters[option].default
        is_flag, is_number = isinstance(default, bool), isinstance(default, int | float)
        if is_number and (is_flag != isinstance(value, bool) or not isinstance(value, Real)):
            expected = "true or false" if is_flag else "a number"
            raise ConfigError(f"loss {name!r}: {option} must be {expected}, got {value!r}")
    try:
        return build(**options)
    except KdkitError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # of a layer
        raise ConfigError(f"loss {name!r} cannot work with these options ({first_line(error)})") from error
