"""Fits weights to a model: as they are, or as timm converts them; otherwise says how they differ."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from kdkit.errors import CheckpointError
from kdkit.teachers.model_config import model_config

_SHOWN = 3

_logger = logging.getLogger(__name__)


def load_state(module: nn.Module, state: Mapping[str, Tensor], origin: str | Path) -> None:
    """Loads `state`, every weight of it, into `module`, as `fit_state` fits it."""
    unwrap_model(module).load_state_dict(fit_state(module, state, origin), strict=True)


def fit_state(module: nn.Module, state: Mapping[str, Tensor], origin: str | Path) -> Mapping[str, Tensor]:
    """Returns weights as the model holds them: as they are, or else after timm's own conversion, which is logged.

    timm's conversion resizes position embeddings and renames the weights of other projects.

    Args:
        module: the model, which may be a skeleton.
        state: name -> weight, as `Checkpoint.fitted_to` returns it.
        origin: where it was read from, for errors.

    Raises:
        CheckpointError: they do not fit.
    """
    plain = unwrap_model(module)
    own = plain.state_dict()
    misfit = describe_misfit(own, state)
    if not misfit:
        return state
    converted = _converted_by_timm(plain, state)
    if converted is None or describe_misfit(own, converted):
        architecture: Any = model_config(plain).get("architecture") or type(plain).__name__
        raise CheckpointError(f"{str(origin)!r} does not fit {architecture}: {misfit}")
    _logger.warning("%r: converted to the model as timm does it, because %s", str(origin), misfit)
    return converted


def describe_misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """How weights differ from those of a model, in one line; "" where they fit."""
    shapes = [
        f"{name} is {_kind(value)}, expected {_kind(own[name])}"
        for name, value in state.items()
        if name in own and _is_other(value, own[name])
    ]
    parts = {
        "it lacks": [name for name in own if name not in state],
        "the model has no": [name for name in state if name not in own],
        "": shapes,
    }
    return "; ".join(f"{text} {listed(names)}".strip() for text, names in parts.items() if names)


def _is_other(value: Tensor, own: Tensor) -> bool:
    """Whether a weight has another shape, or numbers that copying would change: complex, quantised, not floating."""
    is_plain = value.layout is torch.strided and not value.is_quantized and not value.is_complex()
    is_whole = own.is_floating_point() and not value.is_floating_point()
    return value.shape != own.shape or is_whole or not is_plain


def _kind(weight: Tensor) -> str:
    is_plain = weight.is_floating_point() and weight.layout is torch.strided
    return f"{list(weight.shape)}{'' if is_plain else f' in {weight.dtype}, {weight.layout}'}"


def _converted_by_timm(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The weights after timm's conversion of pretrained ones for such a model; None where there is none."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return None if convert is None else dict(convert(dict(state), model))
    except Exception:  # made for other weights: the misfit itself tells more than what the conversion raises
        return None


def image_size_of(state: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """Side in pixels of the images that a position embedding is for, if it is for another size than the model's."""
    plain: Any = unwrap_model(model)
    own, given = getattr(plain, "pos_embed", None), state.get("pos_embed")
    patch = getattr(getattr(plain, "patch_embed", None), "patch_size", None)
    if not isinstance(own, Tensor) or given is None or patch is None or given.ndim != 3 or own.shape == given.shape:
        return None
    num_prefix = 0 if getattr(plain, "no_embed_class", False) else int(getattr(plain, "num_prefix_tokens", 0))
    side = math.isqrt(max(0, given.shape[1] - num_prefix))
    is_square = side > 0 and side * side + num_prefix == given.shape[1]
    return side * int(patch[0]) if is_square and given.shape[2] == own.shape[2] and patch[0] == patch[-1] else None


def skeleton_of(make: Any, **arguments: Any) -> nn.Module:
    """The model that `make` builds, its weights without memory where it can be built so; for names and shapes."""
    try:
        with torch.device("meta"):
            made: nn.Module = make(**arguments)
            return made
    except (NotImplementedError, RuntimeError):  # a model whose construction computes with its weights
        plain: nn.Module = make(**arguments)
        return plain


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
