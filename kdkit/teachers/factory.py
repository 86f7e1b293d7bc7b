"""Create a frozen Teacher from a timm name, a checkpoint or a module: create_teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from timm.utils import unwrap_model
from torch import nn

from kdkit.errors import ClassMismatchError, ConfigError
from kdkit.teachers.class_map import ClassMap, MissingClasses
from kdkit.teachers.class_names import label_names
from kdkit.teachers.fitting import load_state
from kdkit.teachers.model_config import model_config, state_config, unwrap_timm_teacher
from kdkit.teachers.preparation import Resize
from kdkit.teachers.teacher import Teacher
from kdkit.teachers.timm_model import build_model
from kdkit.teachers.weights import read_checkpoint
from kdkit.types import Normalization


def create_teacher(
    model: str | nn.Module,
    *,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    class_map: ClassMap | None = None,
    class_names: Sequence[str] | None = None,
    missing_classes: MissingClasses = "error",
    normalization: Normalization | None = None,
    input_size: int | tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | int | None = None,
    taps: Sequence[str] = (),
    resize: Resize = "bicubic",
    autocast: torch.dtype | None = None,
) -> Teacher:
    """Makes a frozen Teacher.

    Args:
        model: a timm name with or without tag (`resnet50.a1_in1k`), also `hf-hub:` and `local-dir:` names, whose
            pretrained weights are loaded unless `checkpoint` is given; or a module, taken as it is.
        checkpoint: safetensors or torch weights, in a usual container or below a prefix, as
            `kdkit.teachers.weights.read_checkpoint` finds them; of a training checkpoint the EMA when it holds one.
            Nothing that could run code is ever unpickled.
        num_classes: expected number of classes C; a check, never a new head.
        class_map, missing_classes, taps, resize, autocast: as for Teacher.
        class_names: as for Teacher; by default those in the model's configuration, if it holds any.
        normalization: of the model's input; as for Teacher.
        input_size: pixels, side or (height, width), of the model's input; as for Teacher.
        dtype, device: dtype and device of the weights; unchanged for a module, float32 on the CPU for a name.

    Raises:
        ConfigError: `model` is neither a name nor a module, or an option does not fit it.
        UnknownNameError: there is no such model, tag or tap; the error suggests the nearest names.
        CheckpointError: the weights cannot be read or do not fit.
        ClassMismatchError: the teacher has another number of classes than `num_classes`.
    """
    module = _resolve_model(model, checkpoint, normalization).to(device=device, dtype=dtype)
    if class_names is None:
        class_names = label_names(module) if isinstance(model, str) and checkpoint is None else _stated_names(module)
    teacher = Teacher(
        module,
        class_map=class_map,
        class_names=class_names,
        missing_classes=missing_classes,
        normalization=normalization,
        input_size=(input_size, input_size) if isinstance(input_size, int) else input_size,
        name=model if isinstance(model, str) else None,
        taps=taps,
        resize=resize,
        autocast=autocast,
    )
    if num_classes is not None and teacher.num_classes is None:
        raise ConfigError(f"the teacher {teacher.name!r} does not tell how many classes it has: set model.num_classes")
    if num_classes is not None and teacher.num_classes != num_classes:
        raise ClassMismatchError(
            f"the teacher {teacher.name!r} has {teacher.num_classes} classes, expected {num_classes}: "
            "pass a class_map, or a checkpoint trained on those classes"
        )
    return teacher


def _tell_assumed(module: nn.Module, name: str) -> None:
    """Warns where nobody states the normalisation of the model's input."""
    if "mean" not in model_config(module):
        logging.getLogger(__name__).warning(
            "the teacher %r states no normalisation, so ImageNet's is taken: give --teacher-normalization imagenet, or "
            "the one that it was trained with",
            name,
        )


def _stated_names(module: nn.Module) -> tuple[str, ...] | None:
    """The names in a module's configuration, unless they do not fit: it may have another head, or other weights."""
    try:
        return label_names(module)
    except ClassMismatchError:
        return None


def _resolve_model(
    model: str | nn.Module, checkpoint: str | Path | None, normalization: Normalization | None
) -> nn.Module:
    """timm's model of that name, or the module itself, with the weights of `checkpoint` if one is given."""
    if isinstance(model, str):
        built = build_model(model, checkpoint, subject="teacher")
        if normalization is None:
            _tell_assumed(built, model)
        return built
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a teacher is a timm name or an nn.Module, got {type(model).__name__}")
    if checkpoint is not None:
        plain = unwrap_timm_teacher(model)[0]
        found = read_checkpoint(checkpoint)
        load_state(plain, found.fitted_to(unwrap_model(plain).state_dict().keys()), checkpoint)
        if found.class_names is not None:
            state_config(plain, label_names=found.class_names)
    return model
