"""Models by their timm names, with weights of timm or of a file; whatever fails is a one-line error."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from kdkit.errors import CheckpointError, ConfigError, KdkitError, UnknownNameError, first_line, nearest
from kdkit.runtime.memory import is_out_of_memory
from kdkit.teachers.fitting import fit_state, image_size_of, load_state, skeleton_of
from kdkit.teachers.hub import quiet_hub, tell_loading
from kdkit.teachers.imported_model import create_imported_model, find_function, is_import_path
from kdkit.teachers.model_config import model_config, state_config
from kdkit.teachers.model_folder import FOLDER_PREFIX, MODEL_CONFIG, check_num_weights, find_weights
from kdkit.teachers.stored_names import RUN_DESCRIPTION
from kdkit.teachers.torchvision_model import (
    PREFIX,
    check_torchvision_name,
    create_torchvision_model,
    torchvision_size_option,
)
from kdkit.teachers.weights import Checkpoint, read_checkpoint

_FROM_HUB = ("hf-hub:", "hf_hub:")
_WITHOUT_NETWORK = {
    "student": "leave out --pretrained, or give a weights file, --student-checkpoint FILE",
    "teacher": "give a weights file, --teacher.checkpoint FILE (in Python checkpoint=FILE)",
}
CHECKPOINT_PATH = "checkpoint_path"
"""Argument of timm.create_model: a file with the initial weights."""
FIRST_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", CHECKPOINT_PATH, "cache_dir")
"""Arguments of timm.create_model about the initial weights: the trained ones are in a checkpoint."""


def build_model(
    name: str, checkpoint: str | Path | Checkpoint | None, *, ema: bool | None = None, subject: str = "model"
) -> nn.Module:
    """Returns timm's model called `name`, with the weights of `checkpoint`, or else with timm's pretrained weights.

    The model has as many classes as the checkpoint, the image size of its position embedding, and of its images the
    size, crop and normalisation that timm's arguments in the checkpoint name.

    Args:
        name: with or without tag, also `hf-hub:` and `local-dir:` names.
        checkpoint: the file, or what was read from it, or None.
        ema: as for `read_checkpoint`.
        subject: the model's part in errors, e.g. "teacher".

    Raises:
        UnknownNameError: timm has no such model or tag; the error suggests the nearest names.
        CheckpointError: the weights cannot be read or do not fit.
    """
    check_name(name, subject)
    if name.startswith(FOLDER_PREFIX):
        weights = find_weights(name)
        checkpoint = weights if checkpoint is None else checkpoint
    if checkpoint is None:
        return create_model(name, subject, pretrained=True)
    return _with_weights(name, _read(checkpoint, ema), subject)


def _read(checkpoint: str | Path | Checkpoint, ema: bool | None) -> Checkpoint:
    return checkpoint if isinstance(checkpoint, Checkpoint) else read_checkpoint(checkpoint, ema=ema)


def _with_weights(name: str, checkpoint: Checkpoint, subject: str) -> nn.Module:
    plain = skeleton_of(functools.partial(create_model, name, subject))
    state = checkpoint.fitted_to(plain.state_dict().keys())
    size = image_size_of(state, plain)
    options: dict[str, Any] = _head_width(plain, state) | ({} if size is None else {"img_size": size})
    make = functools.partial(create_model, name, subject, **options)
    if name.startswith(FOLDER_PREFIX):  # before a model of any size takes memory
        check_num_weights(skeleton_of(make), state, checkpoint.path)
    module = make()
    load_state(module, state, checkpoint.path)
    if own := ({} if size is None else {"input_size": (3, size, size)}) | checkpoint.input_config():
        unset = {"test_input_size": None, "test_crop_pct": None}  # of timm's own weights
        state_config(module, **unset, **own)
    if checkpoint.class_names is not None:
        state_config(module, label_names=checkpoint.class_names)
    return module


def build_trained(
    name: str,
    options: Mapping[str, Any],
    checkpoint: str | Path | Checkpoint,
    *,
    ema: bool | None = None,
    subject: str = "student",
) -> nn.Module:
    """Returns timm's model called `name`, built with `options`, with the weights of `checkpoint`.

    Names and shapes are compared before the model takes memory, because a foreign folder may describe any size.

    Raises:
        UnknownNameError, ConfigError: there is no such model, or it does not take the options.
        CheckpointError: the weights cannot be read or do not fit.
    """
    check_name(name, subject)
    found = _read(checkpoint, ema)
    make = functools.partial(create_model, name, subject, **options)
    plain = skeleton_of(make)
    state = fit_state(plain, found.fitted_to(plain.state_dict().keys()), found.path)
    module = make()
    module.load_state_dict(state, strict=True)
    return module


def check_name(name: str, subject: str = "model") -> None:
    """Checks that timm has the model and, if one is given, the tag.

    Raises:
        UnknownNameError: it does not; the error suggests the nearest names.
    """
    if name.startswith((FOLDER_PREFIX, *_FROM_HUB)):
        return
    if name.startswith(PREFIX):
        check_torchvision_name(name, subject)
        return
    if is_import_path(name):
        find_function(name, subject)
        return
    base, dot, _ = name.partition(".")
    if not timm.is_model(base):
        known = timm.list_models()
        raise UnknownNameError(f"timm {timm.__version__} has no {subject} {base!r}{nearest(base, known)}{_place(name)}")
    tagged = timm.list_pretrained(f"{base}.*") if dot else []
    if dot and name not in tagged:
        known_tags = ", ".join(tagged) or "none"
        raise UnknownNameError(f"timm {timm.__version__} has no {subject} {name!r}; it has {known_tags}")


def _place(name: str) -> str:
    """What else a name may mean, where it is that of a file or folder."""
    path = Path(name)
    if path.is_dir():
        if (path / MODEL_CONFIG).is_file():
            return f"; the folder of that name holds a model: '{FOLDER_PREFIX}{name}' is it"
        if (path / RUN_DESCRIPTION).is_file():
            return f"; the folder of that name is a run: kdkit export {name} -o DIR, and '{FOLDER_PREFIX}DIR' is it"
        return f"; the folder of that name has neither a run's {RUN_DESCRIPTION} nor an export's {MODEL_CONFIG}"
    if path.is_file():
        return "; a weights file also needs the name of its model"
    return "; there is no file or folder of that name either" if "/" in name else ""


def create_model(name: str, subject: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """timm.create_model, whose errors become kdkit's; a `checkpoint_path` among the options is read as kdkit reads it.

    Raises:
        ConfigError: the model does not take the options.
        CheckpointError: the weights could not be loaded.
    """
    file = options.pop(CHECKPOINT_PATH, None)
    if pretrained and not is_import_path(name) and not name.startswith(FOLDER_PREFIX):
        tell_loading(name)
    try:
        with quiet_hub():
            model = _create(name, subject, pretrained=pretrained, **options)
    except KdkitError:
        raise
    except Exception as error:  # models, their builders and hub clients raise errors of many kinds
        raise _explained(error, name, subject, options, pretrained=pretrained) from error
    if file:
        load_state(model, read_checkpoint(file).fitted_to(model.state_dict().keys()), file)
    return model


def is_timm_name(name: str) -> bool:
    """Whether timm builds the model of that name."""
    return not name.startswith(PREFIX) and not is_import_path(name)


def _create(name: str, subject: str, *, pretrained: bool, **options: Any) -> nn.Module:
    if name.startswith(PREFIX):
        return create_torchvision_model(name, pretrained=pretrained, **options)
    if is_import_path(name):
        return create_imported_model(name, subject, pretrained=pretrained, **options)
    model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    return model


def size_option(name: str, size: int) -> dict[str, int]:
    """The option that gives a model that is made for one image size the side `size`, pixels; empty for any other."""
    if name.startswith(PREFIX):
        return torchvision_size_option(name, size)
    fixed = getattr(timm.get_pretrained_cfg(name, allow_unregistered=True), "fixed_input_size", False)
    return {"img_size": size} if fixed else {}


def _explained(
    error: Exception, name: str, subject: str, options: Mapping[str, Any], *, pretrained: bool
) -> KdkitError:
    """The one-line error for whatever timm.create_model raised."""
    reason = first_line(error)
    given = f"with the options {dict(options)!r}" if options else "as it is"
    if is_out_of_memory(error):
        return ConfigError(f"the {subject} {name!r} does not fit into memory {given} ({reason})")
    if isinstance(error, TypeError):
        return ConfigError(f"the {subject} {name!r} does not take these options: {reason}")
    if name.startswith(_FROM_HUB) and not pretrained:
        make = f"timm.create_model({name!r}, pretrained=False)"
        return CheckpointError(
            f"the description of the {subject} {name!r} is not on this machine ({reason}): load it once, {make}"
        )
    if pretrained or name.startswith(_FROM_HUB):
        ways = _WITHOUT_NETWORK.get(subject, "give a weights file, checkpoint=FILE")
        return CheckpointError(
            f"the pretrained weights of the {subject} {name!r} could not be loaded ({reason}): check the network, or "
            f"{ways}"
        )
    return ConfigError(f"timm cannot build the {subject} {name!r} {given}: {type(error).__name__}: {reason}")


def _head_width(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, int]:
    """num_classes of the checkpoint's own classifier, so that no head is ever replaced."""
    classifier = model_config(model).get("classifier")
    first = classifier[0] if isinstance(classifier, (tuple, list)) else classifier
    bias = state.get(f"{first}.bias", state.get(f"{first}.weight")) if first else None
    return {} if bias is None or bias.ndim == 0 else {"num_classes": bias.shape[0]}
