"""A folder that holds a model in the layout of timm's hub, config.json and weights, read as files of any origin are.

timm reads such a folder without bounds: what config.json claims is checked here before a model is built from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from kdkit.bounds import check_bound, check_model_arguments, shown
from kdkit.errors import CheckpointError, ConfigError, nearest
from kdkit.runtime.reading import read_json

FOLDER_PREFIX = "local-dir:"
"""How timm names such a folder."""
MODEL_CONFIG = "config.json"
"""The file that describes the model."""
_MAX_BYTES = 1 << 24  # the names of a million classes
HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
"""The weights files of such a folder, in the order in which timm prefers them."""
_ENDINGS = (".safetensors", ".pth", ".pth.tar", ".bin")


def find_weights(name: str) -> Path:
    """The weights file of the folder in a name such as local-dir:FOLDER, whose description is checked.

    Raises:
        CheckpointError: there is no such folder, it holds no weights, or its description claims what no model has.
    """
    folder = Path(name.removeprefix(FOLDER_PREFIX))
    _check_description(folder / MODEL_CONFIG)
    named = [folder / file for file in HUB_WEIGHTS]
    others = [path for ending in _ENDINGS for path in sorted(folder.glob(f"*{ending}"))]
    found = next((path for path in [*named, *others] if path.exists()), None)
    if found is None:
        raise CheckpointError(f"{str(folder)!r} holds no weights: expected {HUB_WEIGHTS[0]} next to {MODEL_CONFIG}")
    return found


def check_num_weights(model: nn.Module, state: Mapping[str, Tensor], origin: str | Path) -> None:
    """Checks that a file holds about as many weights as a model, which may be a skeleton, is to have.

    Raises:
        CheckpointError: the model has more than twice as many.
    """
    own, given = (sum(weight.numel() for weight in each.values()) for each in (model.state_dict(), state))
    if own > 2 * given:
        raise CheckpointError(f"{str(origin)!r} holds {given:,} weights, the model that is described has {own:,}")


def _check_description(path: Path) -> None:
    values = read_json(path, limit=_MAX_BYTES, error=CheckpointError)
    try:
        _check_values(values)
    except ConfigError as error:
        raise CheckpointError(f"{str(path)!r} describes no model that kdkit can build: {error}") from None


def _check_values(values: Any) -> None:
    """Raises ConfigError for what is no description of a model in timm's layout."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"it holds {shown(values)}, expected names with values")
    architecture = values.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture.partition(".")[0]):
        hint = nearest(architecture, timm.list_models()) if isinstance(architecture, str) else ""
        raise ConfigError(f"timm has no architecture {shown(architecture)}{hint}")
    arguments, config = values.get("model_args") or {}, values.get("pretrained_cfg", values)
    for part, found in (("model_args", arguments), ("pretrained_cfg", config)):
        if not isinstance(found, Mapping):
            raise ConfigError(f"its {part} is {shown(found)}, expected names with values")
    check_model_arguments(arguments)
    check_input_config(values)
    check_input_config(config)


def check_input_config(config: Mapping[str, Any]) -> None:
    """Checks what a description of a model says about its images and classes, by the names of a pretrained_cfg.

    Raises:
        ConfigError: a value is of another type, or beyond its bounds; names it.
    """
    for name, (is_right, expected) in _FIELDS.items():
        value = config.get(name)
        if value is not None and not is_right(value):
            raise ConfigError(f"its {name} is {shown(value)}, expected {expected}")
        check_bound(_BOUNDED.get(name, name), value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _three(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and len(value) == 3 and all(map(is_right, value))


_SIZE = (_three(lambda side: type(side) is int), "channels, height and width")
_CROP = (_is_number, "a number")
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_classes": (lambda value: type(value) is int, "a whole number"),
    "input_size": _SIZE,
    "test_input_size": _SIZE,
    "crop_pct": _CROP,
    "test_crop_pct": _CROP,
    "interpolation": (lambda value: isinstance(value, str), "a text"),
    "mean": (_three(_is_number), "three numbers"),
    "std": (_three(lambda value: _is_number(value) and value > 0), "three numbers above 0"),
}
_BOUNDED = {"test_input_size": "input_size", "test_crop_pct": "crop_pct"}
