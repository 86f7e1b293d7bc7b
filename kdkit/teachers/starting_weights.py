"""The weights of a file as a student's start: its body, and its classifier where that is of the same classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import CheckpointError
from kdkit.teachers.class_indices import is_tellable
from kdkit.teachers.class_map import composed
from kdkit.teachers.class_names import listed_names
from kdkit.teachers.fitting import load_state
from kdkit.teachers.model_config import find_classifiers, model_config
from kdkit.teachers.timm_model import CHECKPOINT_PATH, create_model
from kdkit.teachers.weights import Checkpoint, read_checkpoint

_logger = logging.getLogger(__name__)


def create_student(
    name: str, class_names: Sequence[str] | None = None, *, file: str | None = None, **options: Any
) -> nn.Module:
    """Creates a student, whose initial weights are loaded as `load_body` does where kdkit stored their class names.

    Args:
        name: name of timm or torchvision, or an import path.
        class_names: names of the student's classes [C]; None if they have none.
        file: weights to start from; by default `checkpoint_path` among the options, which timm takes.
        options: further arguments of timm.create_model.

    Raises:
        UnknownNameError, ConfigError: there is no such model, or it does not take the options.
        CheckpointError: the weights cannot be read or do not fit.
    """
    other, pretrained = options.pop(CHECKPOINT_PATH, None), options.pop("pretrained", False)
    file = file or other
    checkpoint = read_checkpoint(file) if file else None
    student = create_model(name, "student", pretrained=pretrained, **options)
    names = listed_names(model_config(student).get("label_names")) if pretrained else None
    if checkpoint is None and names is not None:
        checkpoint = Checkpoint(Path(name), student.state_dict(), "", {}, prefers_ema=False, class_names=names)
        student = create_model(name, "student", **options)
    if checkpoint is not None:
        load_body(student, checkpoint, class_names)
    return student


def load_body(module: nn.Module, checkpoint: Checkpoint, class_names: Sequence[str] | None = None) -> None:
    """Loads a checkpoint's weights into a model; its classifier stays as it is where the checkpoint's is of others.

    Where kdkit stored the names of the checkpoint's classes, the rows of its classifier are brought into the order of
    `class_names`, and the classifier stays new for other names. Without stored names only the shapes are compared.

    Args:
        module: the model.
        checkpoint: the weights.
        class_names: names of the model's classes [C]; None if they have none.

    Raises:
        CheckpointError: other weights than the classifier's do not fit, or the classes are others, and the model does
            not name its classifier.
    """
    own = module.state_dict()
    state = dict(checkpoint.fitted_to(own.keys()))
    head = _names_of_head(module, own)
    order = _order(checkpoint.class_names, class_names)
    if order != _SAME and not head:
        raise CheckpointError(
            f"{str(checkpoint.path)!r} holds weights of other classes, or of another order, and "
            f"{type(module).__name__} does not name its classifier: set its pretrained_cfg = {{'classifier': NAME}}"
        )
    rows = torch.tensor(order or ())
    if order is None or not _fits(state, own, head, len(order)):
        _logger.warning("%r: its classifier has other classes, and is left out", str(checkpoint.path))
        state |= {name: own[name] for name in head}
    elif order:
        _logger.warning("%r: the classes of its classifier are brought into the data's order", str(checkpoint.path))
        state |= {name: state[name][rows] for name in head if name in state}
    load_state(module, state, checkpoint.path)


_SAME: tuple[int, ...] = ()


def _order(stored: Sequence[str] | None, wanted: Sequence[str] | None) -> tuple[int, ...] | None:
    """For each class its row in the stored classifier [C]; () for the same order, None for other classes."""
    if stored is None or (wanted is None and is_tellable(stored)):
        return _SAME
    if wanted is None:
        return None
    stored, wanted = composed(stored), composed(wanted)
    if stored == wanted:
        return _SAME
    if sorted(stored) != sorted(wanted) or len(set(stored)) < len(stored):
        return None
    return tuple(stored.index(name) for name in wanted)


def _fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor], head: Sequence[str], num_rows: int) -> bool:
    """Whether the stored classifier has the model's shapes, and `num_rows` rows unless that is 0."""
    found = [(state[name].shape, own[name].shape) for name in head if name in state]
    return all(given == wanted and num_rows in (0, *given[:1]) for given, wanted in found)


def _names_of_head(module: nn.Module, own: Mapping[str, Tensor]) -> list[str]:
    """The names of the classifier's weights."""
    heads = find_classifiers(module)
    prefixes = tuple(f"{name}." for name, part in module.named_modules() if any(part is head for head in heads))
    return [name for name in own if name.startswith(prefixes)]
