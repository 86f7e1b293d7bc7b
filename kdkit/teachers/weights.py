"""The weights in a checkpoint as people have it: found in their container, without prefixes, fitted to a model."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from kdkit.errors import CheckpointError
from kdkit.teachers.model_config import model_config
from kdkit.teachers.stored_names import stored_names
from kdkit.teachers.weights_file import load_weights_file

_EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
_MODEL = ("state_dict", "model_state_dict", "model", "net", "weights", "module")
_USUAL = ("", "state_dict", "state_dict_ema")
_PREFIXES = ("module.", "model.", "net.", "student.", "module.student.", "model.student.")
_COMPILED = "_orig_mod."
_ANCHORS = 8  # names of a model that its prefix in a checkpoint is looked up by
_SHOWN = 3
_OF_THE_INPUT = ("input_size", "crop_pct", "mean", "std", "interpolation")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file, and the settings of the training that wrote it."""

    path: Path
    """The file."""
    state: Mapping[str, Tensor]
    """Name -> weight, by the names of the file."""
    container: str
    """Entry of the file that holds them, e.g. state_dict or ema.module; "" for the file itself."""
    args: Mapping[str, Any]
    """timm's arguments of that training; empty in other files."""
    prefers_ema: bool
    """Whether a moving average is taken rather than the model itself."""
    num_epochs: int | None = None
    """Number of epochs after which it was written, if the file tells."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes [K] of these weights, where kdkit stored them."""

    def __str__(self) -> str:
        """The file, when in its training it was written, and whether its moving average is taken, for people."""
        after = "" if self.num_epochs is None else f", after {self.num_epochs} epoch{'s' * (self.num_epochs != 1)}"
        is_ema = self.container.partition(".")[0] in _EMA
        return f"{str(self.path)!r}{after}{', moving average' if is_ema else ''}"

    def fitted_to(self, names: Collection[str]) -> dict[str, Tensor]:
        """The weights [...] by the names of a model, without prefixes; says on the log what was taken if it is unusual.

        Where the model's names stand below a prefix, such as `module.student.`, what stands outside it is left out.

        Args:
            names: the names in the model's state dict.
        """
        plain = {name.replace(_COMPILED, ""): value for name, value in self.state.items()}
        prefix = self._prefix(plain, names)
        taken = {name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)}
        self._report(prefix, len(plain) - len(taken))
        return taken

    def _prefix(self, plain: Collection[str], names: Collection[str]) -> str:
        """The prefix below which the most of the model's names stand; "" where fewer than half do."""
        anchors = sorted(names)[:: max(1, len(names) // _ANCHORS)]
        found = {name[: -len(anchor)] for name in plain for anchor in anchors if name.endswith(anchor)}
        counts = {prefix: sum(prefix + name in plain for name in names) for prefix in found if prefix[-1:] in ("", ".")}
        best = max(counts.values(), default=0)
        if 2 * best < len(names):
            return ""
        return min((prefix for prefix, count in counts.items() if count == best), key=self._unlikeliness)

    def _unlikeliness(self, prefix: str) -> tuple[bool, bool, int, str]:
        """Sorts prefixes that hold equally many of the names: none, then the wanted kind, the known, the short."""
        is_ema = "ema" in prefix.replace("_", ".").split(".")
        return prefix != "" and is_ema != self.prefers_ema, prefix not in ("", *_PREFIXES), len(prefix), prefix

    def _report(self, prefix: str, num_left_out: int) -> None:
        if self.container in _USUAL and not prefix:
            return
        taken = f"the weights in {self.container!r}" if self.container else "its weights"
        named = f", below the prefix {prefix!r}" if prefix else ""
        rest = f"; {num_left_out} others were left out" if num_left_out else ""
        _logger.warning("%r: took %s%s%s", str(self.path), taken, named, rest)

    def input_config(self) -> dict[str, Any]:
        """What timm's arguments of the training say about the images, by the names of a pretrained_cfg."""
        given = {name: value for name in _OF_THE_INPUT if (value := self.args.get(name)) is not None}
        size = self.args.get("img_size")
        if "input_size" not in given and isinstance(size, int):
            given["input_size"] = (3, size, size)
        if given.get("interpolation") == "random":
            del given["interpolation"]  # of the training views alone
        is_list = (list, tuple)
        lists = {name: tuple(value) for name, value in given.items() if isinstance(value, is_list) and len(value) == 3}
        return {name: value for name, value in given.items() if isinstance(value, (int, float, str))} | lists


def read_checkpoint(path: str | Path, *, ema: bool | None = None) -> Checkpoint:
    """Returns the weights in a safetensors or torch file; it runs no code.

    A state dict may be the file itself, or stand in one of the usual containers: state_dict, model_state_dict, model,
    net, weights or module; and for a moving average state_dict_ema, model_ema, ema_state_dict, ema_model or ema.

    Args:
        path: the file.
        ema: whether a checkpoint's moving average is read rather than its model; by default where it has one.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it holds no such weights.
    """
    path = Path(path)
    content = load_weights_file(path)
    averages = _find(content, _EMA) if isinstance(content, Mapping) else None
    if ema and averages is None:
        raise CheckpointError(f"{str(path)!r} holds no EMA weights: leave out ema, or train with an EMA")
    prefers_ema = ema is not False
    found = averages if prefers_ema and averages is not None else _find(content, _MODEL)
    if found is None:
        holds = f"it holds {_listed(sorted(map(str, content)))}" if isinstance(content, Mapping) else type(content)
        raise CheckpointError(f"{str(path)!r} holds no state dict of tensors: expected a model's weights, {holds}")
    args = content.get("args") if isinstance(content, Mapping) else None
    settings = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    epoch = content.get("epoch") if isinstance(content, Mapping) else None  # timm counts from 0
    num_epochs = epoch + 1 if type(epoch) is int and epoch >= -1 else None
    return Checkpoint(path, found[1], found[0], settings, prefers_ema, num_epochs, stored_names(path, content))


def _find(content: Any, containers: Sequence[str], depth: int = 2) -> tuple[str, Mapping[str, Tensor]] | None:
    """The first state dict in `content`, or in an entry of one of these names, with the names that lead to it."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(
        isinstance(name, str) and isinstance(value, Tensor) and not value.is_meta for name, value in content.items()
    ):
        return ("", content) if containers is _MODEL else None
    for name in containers:
        inner = _find(content.get(name), _MODEL, depth - 1) if depth else None
        if inner is not None:
            return ".".join(filter(None, (name, inner[0]))), inner[1]
    return None


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
    return "; ".join(f"{text} {_listed(names)}".strip() for text, names in parts.items() if names)


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


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
