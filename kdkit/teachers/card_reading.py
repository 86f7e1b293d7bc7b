"""Reads one YAML file into a frozen dataclass: strict about names and types, one line for each mistake."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union

from kdkit.errors import ConfigError, nearest
from kdkit.runtime.reading import read_yaml

MAX_BYTES = 65_536  # a card is about 2 kB; a larger file is not a card, and is not parsed

_T = TypeVar("_T")
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


def shown(value: object) -> str:
    """Returns a text of `value` for a message: one line, short even when the value is long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of very many digits"


def load_mapping(path: Path) -> Mapping[Any, Any]:
    """Returns the mapping in a YAML file, read as yaml.safe_load does: plain data, no Python objects.

    Raises:
        ConfigError: no such file, not readable, too large, not YAML, not a mapping, or a key given twice.
    """
    data = read_yaml(path, limit=MAX_BYTES)
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: expected fields with values, got {shown(data)}")
    return data


def build(cls: type[_T], data: object, where: str = "") -> _T:
    """Returns a dataclass `cls` from a mapping of its fields; `where` is the field that holds it, for messages.

    Raises:
        ConfigError: a field is unknown (the error suggests the nearest), missing, or of a wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected fields with values, got {shown(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and not f.metadata.get("internal")}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for key in data:
        if key not in fields:
            guess = nearest(str(key), fields) or f"; known: {', '.join(fields)}"
            raise ConfigError(f"{prefix}{key if str(key).isidentifier() else shown(key)}: no such field{guess}")
    for name, field in fields.items():
        if name not in data and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name}: missing, and required")
    hints = typing.get_type_hints(cls)
    values = {key: convert(hints[key], value, f"{prefix}{key}") for key, value in data.items()}
    try:
        return cls(**values)
    except ConfigError as error:  # from __post_init__, which does not know the place in the file
        raise ConfigError(f"{prefix}{error}") from error


def convert(hint: Any, value: object, where: str) -> Any:
    """Returns `value` as the type `hint`: str, int, float, tuple, dataclass, or one of these or None."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else convert(next(a for a in args if a is not types.NoneType), value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    if origin is tuple:
        return _convert_items(args, value, where)
    if hint is str and isinstance(value, str) and value.strip():
        return value
    if hint in (int, float) and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31:
        return hint(value)
    if hint is float and isinstance(value, float) and math.isfinite(value):
        return value
    wanted = {str: "text", int: "a whole number", float: "a number"}[hint]
    raise ConfigError(f"{where}: expected {wanted}, got {shown(value)}")


def _convert_items(args: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    """A YAML list as a tuple: of any length for tuple[X, ...], of one item for each type otherwise."""
    if not isinstance(value, list):
        raise ConfigError(f"{where}: expected a list, got {shown(value)}")
    hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(value):
        raise ConfigError(f"{where}: expected {len(hints)} items, got {len(value)}: {shown(value)}")
    return tuple(convert(h, item, f"{where}[{i}]") for i, (h, item) in enumerate(zip(hints, value, strict=True)))
