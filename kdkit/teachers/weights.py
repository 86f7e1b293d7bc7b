"""The weights in a checkpoint as people have it: found in their container, without prefixes, fitted to a model."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit.errors import CheckpointError, ConfigError
from kdkit.teachers.fitting import listed
from kdkit.teachers.model_folder import check_input_config
from kdkit.teachers.stored_names import stored_names
from kdkit.teachers.weights_folder import load_weights

_EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
_MODEL = ("state_dict", "model_state_dict", "model", "net", "weights", "module")
_USUAL = ("", "state_dict", "state_dict_ema")
_PREFIXES = ("module.", "model.", "net.", "student.", "module.student.", "model.student.")
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into the names, anywhere."""
_ANCHORS = 8  # names of a model that its prefix in a checkpoint is looked up by
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

        Raises:
            CheckpointError: a weight that is taken is NaN.
        """
        plain = {_unwrapped(name): value for name, value in self.state.items()}
        prefix = self._prefix(plain, names)
        taken = {name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)}
        self._report(prefix, len(plain) - len(taken))
        if (name := next((name for name, value in taken.items() if _has_nan(value)), None)) is not None:
            raise CheckpointError(f"{str(self.path)!r} holds NaN in {name}: the training that wrote it had diverged")
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
        """What timm's arguments of the training say about the images, by the names of a pretrained_cfg.

        Raises:
            CheckpointError: a value is of another type, or beyond its bounds.
        """
        given = {name: value for name in _OF_THE_INPUT if (value := self.args.get(name)) is not None}
        size = self.args.get("img_size")
        if "input_size" not in given and isinstance(size, int):
            given["input_size"] = (3, size, size)
        if given.get("interpolation") == "random":
            del given["interpolation"]  # of the training views alone
        is_list = (list, tuple)
        lists = {name: tuple(value) for name, value in given.items() if isinstance(value, is_list) and len(value) == 3}
        found = {name: value for name, value in given.items() if isinstance(value, (int, float, str))} | lists
        try:
            check_input_config(found)
        except ConfigError as error:
            raise CheckpointError(f"{str(self.path)!r}: of the arguments of its training, {error}") from None
        return found


def _is_within_epoch(content: Any) -> bool:
    """Whether these are weights of kdkit from between two batches of an epoch, which no metrics belong to."""
    own = content.get("kdkit")
    position = own.get("position") if isinstance(own, Mapping) else None
    return isinstance(position, Mapping) and position.get("batch", 0) not in (0, None)


def read_checkpoint(path: str | Path, *, ema: bool | None = None) -> Checkpoint:
    """Returns the weights in a safetensors or torch file, or in a folder of them; it runs no code.

    A state dict may be the file itself, or stand in one of the usual containers: state_dict, model_state_dict, model,
    net, weights or module; and for a moving average state_dict_ema, model_ema, ema_state_dict, ema_model or ema.

    Args:
        path: the file.
        ema: whether a checkpoint's moving average is read rather than its model; by default where it has one. It is
            read in any case where there is nothing else.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it holds no such weights.
    """
    path = Path(path)
    content = load_weights(path)
    averages = _find(content, _EMA) if isinstance(content, Mapping) else None
    if ema and averages is None:
        raise CheckpointError(f"{str(path)!r} holds no EMA weights: leave out ema, or train with an EMA")
    prefers_ema = ema is not False
    found = averages if prefers_ema and averages is not None else _find(content, _MODEL) or averages
    if found is None:
        holds = f"it holds {listed(sorted(map(str, content)))}" if isinstance(content, Mapping) else type(content)
        raise CheckpointError(f"{str(path)!r} holds no state dict of tensors: expected a model's weights, {holds}")
    args = content.get("args") if isinstance(content, Mapping) else None
    settings = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    epoch = content.get("epoch") if isinstance(content, Mapping) else None  # timm counts from 0
    num_epochs = epoch + 1 if type(epoch) is int and epoch >= -1 and not _is_within_epoch(content) else None
    return Checkpoint(path, found[1], found[0], settings, prefers_ema, num_epochs, stored_names(path, content))


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


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


def _has_nan(weight: Tensor) -> bool:
    is_plain = weight.is_floating_point() and weight.layout is torch.strided and weight.element_size() > 1
    return is_plain and bool(weight.isnan().any())
