"""torchvision's classification models, by the name `torchvision:NAME` or `torchvision:NAME.WEIGHTS`."""

from __future__ import annotations

import inspect
from typing import Any

import torchvision.models
from torch import nn

from kdkit.errors import CheckpointError, UnknownNameError, nearest

PREFIX = "torchvision:"
_DEFAULT_CLASSES = 1000
_NEED_INIT = ("googlenet", "inception_v3")  # they warn unless told how their weights begin


def check_torchvision_name(name: str, subject: str) -> None:
    """Checks that torchvision has the model and, if they are named, the weights.

    Raises:
        UnknownNameError: it does not; the error suggests the nearest names.
    """
    base, _, tag = name.removeprefix(PREFIX).partition(".")
    known = torchvision.models.list_models(module=torchvision.models)
    version = f"torchvision {torchvision.__version__}"
    if base not in known:
        raise UnknownNameError(f"{version} has no {subject} {base!r}{nearest(base, known)}")
    weights = [entry.name for entry in torchvision.models.get_model_weights(base)]
    if tag and tag not in weights:
        raise UnknownNameError(f"{version} has no weights {tag!r} of {base!r}; it has {', '.join(weights) or 'none'}")


def create_torchvision_model(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
    """Returns the model, with a timm-like `pretrained_cfg` of its input and the name of its classifier.

    Args:
        name: a name that `check_torchvision_name` accepts; without weights in it, torchvision's default weights.
        pretrained: whether it gets torchvision's weights; its classifier stays new if `num_classes` differs.
        options: arguments of torchvision's builder, e.g. num_classes.

    Raises:
        CheckpointError: the weights do not fit the options.
    """
    base, _, tag = name.removeprefix(PREFIX).partition(".")
    known = torchvision.models.get_model_weights(base)
    weights = known[tag] if tag else known.DEFAULT
    if base in _NEED_INIT:
        options.setdefault("init_weights", True)
    model: Any = torchvision.models.get_model(base, weights=None, **options)
    model.num_classes = int(options.get("num_classes", _DEFAULT_CLASSES))
    model.pretrained_cfg = _describe(name, model, weights)
    if pretrained:
        _load(model, weights, name)
    found: nn.Module = model
    return found


def torchvision_size_option(name: str, size: int) -> dict[str, int]:
    """The option that gives a model of a fixed image size the side `size`, pixels; empty for a model that takes any."""
    builder = torchvision.models.get_model_builder(name.removeprefix(PREFIX).partition(".")[0])
    base = builder.__name__
    takes_size = base.startswith("vit_") or "image_size" in inspect.signature(builder).parameters
    return {"image_size": size} if takes_size else {}


def _load(model: nn.Module, weights: Any, name: str) -> None:
    """Loads torchvision's weights; those of the classifier only if the model has as many classes."""
    state, own = weights.get_state_dict(progress=False, check_hash=True), model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    left = [key for key in own if key not in fitting]
    classes = int(getattr(model, "num_classes", 0))
    if left and classes == len(weights.meta["categories"]):
        raise CheckpointError(f"torchvision's weights do not fit {name!r} with these options: {left[0]} differs")
    model.load_state_dict(fitting, strict=False)


def _describe(name: str, model: nn.Module, weights: Any) -> dict[str, Any]:
    """The model's input and classifier, as timm's pretrained_cfg names them."""
    preset = weights.transforms()
    side, resized = preset.crop_size[0], preset.resize_size[0]
    heads = [key for key, part in model.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    return {
        "architecture": name,
        "input_size": (3, side, side),
        "crop_pct": side / resized,
        "interpolation": preset.interpolation.value,
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "num_classes": len(weights.meta["categories"]),
        "classifier": heads[-1],
    }
