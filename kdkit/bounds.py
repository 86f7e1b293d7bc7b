"""The one table of bounds: the types and ranges of settings, whether a user or a document of unknown origin gives them.

A setting beyond its bound is refused before anything is computed from it. The bounds lie far outside of what is useful;
they keep a mistyped or malicious number from filling the memory or from running for ever.
"""

from __future__ import annotations

import functools
import numbers
import os
import re
import reprlib
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kdkit.errors import ConfigError

BOUNDS: Mapping[str, tuple[float, float, str]] = {
    # views
    "size": (1, 4_096, "pixels"),
    "teacher_size": (1, 4_096, "pixels"),
    "input_size": (1, 4_096, "pixels"),
    "num_views": (1, 1_000_000, "views"),
    "views_per_partner": (1, 1_000_000, "views"),
    "erasing_count": (1, 256, "rectangles"),
    "color_jitter": (0, 100, ""),
    "seed": (-(2**63), 2**63 - 1, ""),
    # batches and epochs
    "batch_size": (1, 2**20, "images"),
    "num_workers": (0, 1_024, "processes"),
    "memory": (1, 2**30, "MiB"),
    "views_per_decode": (1, 1_024, "views"),
    "epochs": (1, 1_000_000, "epochs"),
    "accumulate": (1, 1_000_000, "batches"),
    "log_every": (1, 10**9, "steps"),
    "checkpoint_every": (0, 10**9, "updates"),
    # students that a file describes
    "num_classes": (0, 2**20, "classes"),
    "img_size": (1, 4_096, "pixels"),
    "crop_pct": (0.01, 1, ""),
}
"""Field -> smallest value, largest value, unit. A pair of numbers, such as an image's two sides, is bounded by each."""

_MAX_ARGUMENT = 65_536  # of a model that a file describes: widths, depths, heads
_MAX_DEPTH = 1_000  # of such a model's layers: each is built, whether or not it has weights
_DEPTHS = ("depth", "layer", "block", "stage")
_MAX_TEXT, _MAX_OPERATIONS, _MAX_SECTION = 200, 32, 1_000  # of an auto_augment string
_SECTION = re.compile(r"([a-z]+)?(\d+(?:\.\d+)?(?:e\d+)?)", re.IGNORECASE)

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, 60, 60, 40


def shown(value: object) -> str:
    """Returns a short text of any value for a message, on one line."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of very many digits"


def check_fields(config: object) -> None:
    """Checks the type of each field of a dataclass, and its range where BOUNDS has one.

    Raises:
        ConfigError: names the field, what was expected and what it is.
    """
    config_class: Any = type(config)
    for name, hint in _hints(config_class).items():
        value = getattr(config, name)
        if not _is(value, hint):
            raise ConfigError(f"{name} has the wrong type: expected {_words(hint)}, got {shown(value)}")
        check_bound(name, value)


def check_bound(name: str, value: object) -> None:
    """Checks a number, or each number of a list, against the bound of the field called `name`, where it has one.

    Raises:
        ConfigError: it is out of range.
    """
    if name not in BOUNDS:
        return
    low, high, unit = BOUNDS[name]
    for number in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(number, numbers.Real) and not _is_within(number, low, high):
            unit = f" {unit}" if unit else ""
            raise ConfigError(f"{name} must be from {low:,} to {high:,}{unit}, got {shown(number)}")


def _is_within(number: Any, low: float, high: float) -> bool:
    return bool(low <= number <= high)  # False for NaN


def check_auto_augment(text: str) -> None:
    """Checks the numbers in an auto_augment string, such as rand-m9-n3-mstd0.5, of which timm checks none.

    Raises:
        ConfigError: it is too long, or a number in it is out of range.
    """
    if len(text) > _MAX_TEXT:
        raise ConfigError(f"auto_augment has at most {_MAX_TEXT} characters, got {len(text):,}: {shown(text)}")
    for section in text.split("-")[1:]:
        for letters, digits in _SECTION.findall(section):
            most = _MAX_OPERATIONS if letters in ("n", "w", "d") else _MAX_SECTION
            if not float(digits) <= most:
                raise ConfigError(f"auto_augment has {shown(section)} in {shown(text)}: expected at most {most}")


def check_model_arguments(arguments: Mapping[str, Any]) -> None:
    """Checks the arguments of a model that a file describes, before the model is built.

    Raises:
        ConfigError: one is not a plain value, or a number is out of range.
    """
    for name, value in arguments.items():
        check_bound(name, value)
        most = _MAX_DEPTH if any(word in name for word in _DEPTHS) else _MAX_ARGUMENT
        if name not in BOUNDS:
            _check_argument(name, value, most)


def _check_argument(name: str, value: object, most: int) -> None:
    if isinstance(value, Mapping):
        check_model_arguments(value)
    elif isinstance(value, (list, tuple)):
        if len(value) > _MAX_DEPTH:
            raise ConfigError(f"the model's argument {name} has {len(value):,} items, expected up to {_MAX_DEPTH}")
        for item in value:
            _check_argument(name, item, most)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) <= most:
        raise ConfigError(f"the model's argument {name} must be at most {most:,}, got {shown(value)}")


@functools.cache
def _hints(config_class: Any) -> dict[str, Any]:
    hints = get_type_hints(config_class)
    return {field.name: hints[field.name] for field in fields(config_class)}


def _is(value: object, hint: Any) -> bool:
    """Whether a value is of a type, as far as a configuration's types go; a list counts as a tuple."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or origin is Literal:  # its choices are checked by kdkit.config.choices
        return hint is Any or value.__class__ in {choice.__class__ for choice in arguments}
    if origin in (Union, types.UnionType):
        return any(_is(value, each) for each in arguments)
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real  # NumPy's numbers too
        return isinstance(value, kind) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, (str, os.PathLike))
    if origin is tuple:
        return isinstance(value, (list, tuple)) and _are(value, arguments)
    return isinstance(value, Mapping if origin is dict else hint if isinstance(hint, type) else object)


def _are(values: list[Any] | tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    each = hints[:1] * len(values) if hints[-1] is Ellipsis else hints
    return len(values) == len(each) and all(_is(value, hint) for value, hint in zip(values, each, strict=True))


def _words(hint: Any) -> str:
    """A type, in words."""
    known = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, get_args(hint))))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list ({', '.join('...' if each is Ellipsis else _words(each) for each in get_args(hint))})"
    if get_origin(hint) is dict:
        return "names with values"
    return known.get(hint, "names with values" if is_dataclass(hint) else str(getattr(hint, "__name__", hint)))
