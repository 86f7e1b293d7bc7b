"""Losses by name, with their options bound: what a configuration file can say."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kdkit.errors import ConfigError, UnknownNameError, nearest
from kdkit.losses.attention import attention
from kdkit.losses.correlation import dist
from kdkit.losses.decoupled import dkd, nkd
from kdkit.losses.hint import hint_cosine, hint_mse
from kdkit.losses.kl import deit_soft, kl, soft_ce
from kdkit.losses.ofa import ofa
from kdkit.losses.power import ttm, wttm
from kdkit.losses.projection import Projected
from kdkit.losses.pseudo_label import bce, hard
from kdkit.losses.relation import pkt, rkd_angle, rkd_distance, similarity
from kdkit.losses.review import ReviewKD
from kdkit.losses.standardize import standardized
from kdkit.losses.vitkd import ViTKD

_LOGIT: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss for loss in (kl, soft_ce, bce, hard, deit_soft, dkd, nkd, dist, ttm, wttm, ofa)
}
_FEATURE: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss for loss in (hint_mse, hint_cosine, attention, similarity, pkt, rkd_distance, rkd_angle)
}
_MODULE: dict[str, type[nn.Module]] = {"vitkd": ViTKD, "review": ReviewKD}
_WIDTHS = ("student_width", "teacher_width")


def available() -> list[str]:
    """The names that `create` takes, sorted."""
    return sorted([*_LOGIT, *_FEATURE, *_MODULE])


def create(name: str, **options: Any) -> Callable[..., Tensor]:
    """The loss called `name` with its options bound, e.g. `create("kl", temperature=4.0)`.

    A logit loss is called f(student_logits, teacher_logits), with `target` third where `needs_target` says so;
    `standardize=True` puts logit standardisation before it. A feature loss is called f(student_feature,
    teacher_feature); `student_width` and `teacher_width` put a trainable projection before it. `vitkd` and `review`
    take lists of features on both sides. What has parameters (projection, vitkd, review) comes as an nn.Module.

    Raises:
        UnknownNameError: no loss has this name.
        ConfigError: the loss has no such option.
    """
    if name in _MODULE:
        _check_options(name, _MODULE[name], options)
        module: nn.Module = _build(name, _MODULE[name], options)
        return module
    if name in _LOGIT:
        _check_options(name, _LOGIT[name], options, ("standardize",))
        wanted = options.pop("standardize", False)
        bound = functools.partial(_LOGIT[name], **options)
        return standardized(bound) if wanted else bound
    if name in _FEATURE:
        _check_options(name, _FEATURE[name], options, _WIDTHS)
        widths = {key: options.pop(key) for key in _WIDTHS if key in options}
        feature_loss = functools.partial(_FEATURE[name], **options)
        if not widths:
            return feature_loss
        projected: Projected = _build(name, functools.partial(Projected, feature_loss), widths)
        return projected
    raise UnknownNameError(f"no loss is called {name!r}; known: {', '.join(available())}{nearest(name, available())}")


def needs_target(loss: str | Callable[..., Tensor]) -> bool:
    """Whether a loss, by name or as `create` made it, takes labels `target` as its third argument."""
    if isinstance(loss, str):
        loss = create(loss) if loss not in _MODULE else _MODULE[loss].forward
    return "target" in inspect.signature(loss).parameters


def is_feature_loss(name: str) -> bool:
    """Whether the loss called `name` compares features and not logits."""
    if name not in available():
        create(name)  # raises, with suggestions
    return name not in _LOGIT


def _check_options(name: str, loss: Callable[..., Any], options: dict[str, Any], extra: tuple[str, ...] = ()) -> None:
    parameters = inspect.signature(loss).parameters.values()
    keyword_only = inspect.isfunction(loss)
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY or not keyword_only]
    for option in options:
        if option not in (*known, *extra):
            accepted = ", ".join((*known, *extra)) or "none"
            raise ConfigError(f"loss {name!r} has no option {option!r}; it takes {accepted}")


def _build(name: str, build: Callable[..., Any], options: dict[str, Any]) -> Any:
    required = [p.name for p in inspect.signature(build).parameters.values() if p.default is p.empty]
    missing = [option for option in required if option not in options]
    if missing:
        raise ConfigError(f"loss {name!r} needs the option {missing[0]!r}, got {', '.join(options) or 'none'}")
    return build(**options)
