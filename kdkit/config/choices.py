"""The closed choices of a configuration are `Literal` types; this is the one place that checks them at run time."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kdkit.bounds import check_fields
from kdkit.errors import ConfigError, nearest


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a type that is not a union is its own only member."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def choices(hint: Any) -> tuple[Any, ...]:
    """The values of all `Literal` types in a hint; empty if it has no such type."""
    return tuple(value for kind in alternatives(hint) if get_origin(kind) is Literal for value in get_args(kind))


def check_choices(config: object) -> None:
    """Checks each field of a dataclass: its type, its bound, and that it is one of the choices of its `Literal`.

    Raises:
        ConfigError: a field holds a value of another type, out of range, or none of its choices.
    """
    check_fields(config)
    for name, hint in get_type_hints(type(config)).items():
        kinds = alternatives(hint)
        if not all(get_origin(kind) is Literal or kind is type(None) for kind in kinds):
            continue
        known, value = choices(hint), getattr(config, name)
        if value not in known and not (value is None and type(None) in kinds):
            hint_text = nearest(str(value), map(str, known))
            raise ConfigError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}{hint_text}")
