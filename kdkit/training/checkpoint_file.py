"""Reading a checkpoint's file: whether it loads, is undamaged, and holds what a run resumes from."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit.errors import CheckpointError, first_line
from kdkit.runtime.reading import open_regular

_MISSING = object()
_SHOWN = 40


def load_checkpoint(path: Path) -> Any:
    """Contents of a checkpoint, on the CPU; of any shape, which `check_usable` checks.

    Raises:
        CheckpointError: it cannot be read, or holds more than tensors and plain values.
    """
    try:
        with open_regular(path, error=CheckpointError) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises whatever the unpickler and the zip reader do
        reason = first_line(error).split(". ")[0]  # torch adds advice that runs code
        raise CheckpointError(f"{str(path)!r} cannot be read: {reason}") from error


def check_usable(path: Path, *, with_log: bool = False) -> None:
    """Loads the checkpoint once, checks its shape, and compares its checksums, which torch writes but does not read.

    Args:
        path: the checkpoint.
        with_log: whether the run has a logger, which the checkpoint must hold the position of.

    Raises:
        CheckpointError: it cannot be read, is damaged, is not a run's checkpoint, or a weight is not finite.
    """
    content = load_checkpoint(path)
    try:
        with open_regular(path, error=CheckpointError) as file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{str(path)!r} is damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{str(path)!r} is damaged: the checksum of {damaged!r} in it is wrong")
    _check_shape(content, path, with_log=with_log)
    if bad := non_finite_weight(content):
        raise CheckpointError(f"{str(path)!r} cannot be used: its weight {bad!r} is not finite")


def non_finite_weight(content: Mapping[str, Any]) -> str | None:
    """Name of the first weight that holds NaN or infinity."""
    weights = content.get("state_dict", {})
    return next((name for name, weight in weights.items() if not torch.isfinite(weight).all()), None)


def _check_shape(content: Any, path: Path, *, with_log: bool) -> None:
    """Checks that every field that a run resumes from is there, and of the type that `RunState.to_dict` gives it."""
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{str(path)!r} is not a checkpoint of a kdkit run: it holds {_shown(content)}, not a dict"
        )
    if "kdkit" not in content:
        raise CheckpointError(
            f"{str(path)!r} is not a checkpoint of a kdkit run: it holds {sorted(map(str, content))[:5]}"
        )
    for name, (is_right, expected) in (_FIELDS | (_LOGGED if with_log else {})).items():
        value: Any = content
        for part in name.split("."):
            value = value.get(part, _MISSING)
        if not is_right(value):
            raise CheckpointError(f"{str(path)!r} cannot be used: its {name} is {_shown(value)}, expected {expected}")


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "missing"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value) if len(repr(value)) <= _SHOWN else repr(value)[:_SHOWN] + "..."
    is_empty = isinstance(value, (dict, list, tuple)) and not value
    return f"{'an empty' if is_empty else 'a'} {type(value).__name__}"


def _is_tensors(value: Any) -> bool:
    return _is_named(value) and all(isinstance(weight, Tensor) for weight in value.values())


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _is_named_or_left_out(value: Any) -> bool:
    return value is None or value is _MISSING or _is_named(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_counts(*names: str) -> Callable[[Any], bool]:
    """Whether a value holds whole numbers from 0 under exactly these names."""
    return lambda value: (
        isinstance(value, dict)
        and set(value) == set(names)
        and all(type(number) is int and number >= 0 for number in value.values())
    )


def _is_optimizer(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("state"), dict)
        and isinstance(value.get("param_groups"), list)
        and all(_is_named(group) and isinstance(group.get("params"), list) for group in value["param_groups"])
    )


def _is_random(value: Any) -> bool:
    return isinstance(value, dict) and (
        isinstance(value.get("python"), tuple)
        and isinstance(value.get("numpy"), list)
        and isinstance(value.get("torch"), Tensor)
        and "cuda" in value
    )


_NAMED = (_is_named, "a dict of names")
_OPTIONAL = (_is_named_or_left_out, "a dict of names, or none")
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kdkit": _NAMED,
    "kdkit.config": _NAMED,
    "kdkit.position": (_is_counts("epoch", "batch", "update"), "the numbers epoch, batch and update"),
    "kdkit.scheduler": _OPTIONAL,
    "kdkit.random": (
        lambda value: isinstance(value, list) and len(value) > 0 and all(map(_is_random, value)),
        "a list of the random generators of each rank",
    ),
    "kdkit.sums": (lambda value: _is_named(value) and all(map(_is_number, value.values())), "a dict of numbers"),
    "kdkit.records": (lambda value: isinstance(value, list) and all(map(_is_named, value)), "a list of records"),
    "kdkit.best": (lambda value: value is None or _is_number(value), "a number or None"),
    "kdkit.log": _NAMED,
    "state_dict": (_is_tensors, "a dict of tensors"),
    "state_dict_ema": (lambda value: value is _MISSING or _is_tensors(value), "a dict of tensors, or none"),
    "task_state": _OPTIONAL,
    "task_state_ema": _OPTIONAL,
    "optimizer": (_is_optimizer, "an optimiser's state"),
    "amp_scaler": _NAMED,
}
"""Field of a checkpoint -> whether a value is right, and what is, in words; a parent comes before its fields."""
_LOGGED = {"kdkit.log": (_is_counts("bytes", "step"), "the numbers bytes and step")}
