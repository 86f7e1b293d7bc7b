"""Create a frozen Teacher from a timm name, a checkpoint or a module: create_teacher."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from kdkit.errors import CheckpointError, ClassMismatchError, ConfigError, UnknownNameError, first_line, nearest
from kdkit.teachers.class_map import ClassMap, MissingClasses
from kdkit.teachers.class_names import label_names
from kdkit.teachers.model_config import model_config, unwrap_timm_teacher
from kdkit.teachers.preparation import Resize
from kdkit.teachers.teacher import Teacher
from kdkit.types import Normalization

_UNREADABLE = (
    pickle.UnpicklingError,
    SafetensorError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_LOADED_BY_TIMM = ("hf-hub:", "local-dir:", "hf_hub:", "local_dir:")


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
        checkpoint: safetensors or torch weights; timm's training checkpoints too (their EMA when they hold one).
            Nothing that could run code is ever unpickled.
        num_classes: expected number of classes C; a check, never a new head.
        class_map, missing_classes: as for Teacher.
        class_names: as for Teacher; by default those in the model's configuration, if it holds any.
        normalization: of the model's input; as for Teacher.
        input_size: pixels, side or (height, width), of the model's input; as for Teacher.
        dtype, device: dtype and device of the weights; unchanged for a module, float32 on the CPU for a name.
        taps, resize, autocast: as for Teacher.

    Raises:
        UnknownNameError: timm has no such model or tag, or the model no such tap; the error suggests the nearest names.
        CheckpointError: the weights cannot be read or do not fit.
        ClassMismatchError: the teacher has another number of classes than `num_classes`.
    """
    module = _resolve_model(model, checkpoint).to(device=device, dtype=dtype)
    teacher = Teacher(
        module,
        class_map=class_map,
        class_names=class_names or (label_names(module) if isinstance(model, str) else _stated_names(module)),
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


def _stated_names(module: nn.Module) -> tuple[str, ...] | None:
    """The names in a module's configuration, unless they do not fit: its head may have been replaced since."""
    try:
        return label_names(module)
    except ClassMismatchError:
        return None


def _resolve_model(model: str | nn.Module, checkpoint: str | Path | None) -> nn.Module:
    """timm's model of that name, or the module itself, with the weights of `checkpoint` if one is given."""
    if isinstance(model, str):
        return build_model(model, checkpoint)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a teacher is a timm name or an nn.Module, got {type(model).__name__}")
    if checkpoint is not None:
        load_weights(unwrap_timm_teacher(model)[0], read_weights(checkpoint), checkpoint)
    return model


def build_model(name: str, checkpoint: str | Path | None, *, ema: bool | None = None) -> nn.Module:
    """Returns timm's model called `name`, with the weights of `checkpoint` (`ema` as for `read_weights`) or timm's own.

    Raises:
        UnknownNameError: timm has no such model or tag; the error suggests the nearest names.
        CheckpointError: the weights cannot be read or do not fit.
    """
    if not name.startswith(_LOADED_BY_TIMM):
        _check_name(name)
    if checkpoint is not None:
        state = read_weights(checkpoint, ema=ema)
        module: nn.Module = timm.create_model(name, pretrained=False, **_head_width(name, state))
        load_weights(module, state, checkpoint)
        return module
    try:
        pretrained: nn.Module = timm.create_model(name, pretrained=True)
        return pretrained
    except Exception as error:  # hub clients raise many kinds of errors
        reason = first_line(error)
        raise CheckpointError(
            f"the pretrained weights of {name!r} could not be loaded ({reason}): check the network, or pass "
            "checkpoint=FILE"
        ) from error


def _check_name(name: str) -> None:
    """Raises UnknownNameError unless timm has the model and, if one is given, the tag."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        known = timm.list_models()
        raise UnknownNameError(f"timm {timm.__version__} has no model {base!r}{nearest(base, known)}")
    tagged = timm.list_pretrained(f"{base}.*") if tag else []
    if tag and name not in tagged:
        known_tags = ", ".join(tagged) or "none"
        raise UnknownNameError(f"timm {timm.__version__} has no weights {name!r}; it has {known_tags}")


def read_weights(checkpoint: str | Path, *, ema: bool | None = None) -> dict[str, Tensor]:
    """Returns the state dict in a safetensors or torch file, timm's training checkpoints too; it runs no code.

    Args:
        checkpoint: the file.
        ema: whether a training checkpoint's EMA is read rather than its model; by default its EMA if it has one.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it holds no EMA and `ema` is True.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {str(path)!r}: expected a .safetensors or torch weights file")
    try:
        if ema and not _holds_ema(path):
            raise CheckpointError(f"{str(path)!r} holds no EMA weights: leave out ema, or train with an EMA")
        state = load_state_dict(str(path), use_ema=ema is not False, weights_only=True)
    except CheckpointError:
        raise
    except _UNREADABLE as error:
        reason = first_line(error)
        raise CheckpointError(
            f"{str(path)!r} is not a weights file kdkit will read ({reason}): expected safetensors, or a file that "
            "torch.load(weights_only=True) accepts"
        ) from error
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if len(tensors) != len(state) or not tensors:
        raise CheckpointError(f"{str(path)!r} holds no state dict of tensors: expected a model's weights")
    return tensors


def _holds_ema(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return False
    content = torch.load(path, map_location="cpu", weights_only=True)
    return isinstance(content, dict) and any(content.get(name) is not None for name in ("state_dict_ema", "model_ema"))


def _head_width(name: str, state: Mapping[str, Tensor]) -> dict[str, int]:
    """num_classes of the checkpoint's own classifier, so that no head is ever replaced."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    classifier = getattr(config, "classifier", None)
    first = classifier[0] if isinstance(classifier, (tuple, list)) else classifier
    bias = state.get(f"{first}.bias", state.get(f"{first}.weight")) if first else None
    return {} if bias is None else {"num_classes": bias.shape[0]}


def load_weights(module: nn.Module, state: Mapping[str, Tensor], checkpoint: str | Path) -> None:
    """Loads `state`, read from `checkpoint`, into `module`, every tensor of it.

    Raises:
        CheckpointError: it does not fit.
    """
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        architecture: Any = model_config(module).get("architecture") or type(module).__name__
        raise CheckpointError(f"{str(checkpoint)!r} does not fit {architecture}: {reason}") from error
