"""JSON from an untrusted file: bounded in size and depth, and of the expected types.

`Fields` reads a document field by field; a field that is missing, of another type or out of range raises
CacheCorruptError.
"""

from __future__ import annotations

import json
from typing import Any

from kdkit.errors import CacheCorruptError

MAX_DEPTH = 16
_MAX_ITEMS = 1 << 20


def parse_json(text: str, origin: str) -> Any:
    """Parses a JSON text of at most 16 levels and 2^20 items, in which no object has a name twice.

    Raises:
        CacheCorruptError: the text is something else; names `origin`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        _check_size(value)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CacheCorruptError(f"{origin} is not JSON that kdkit wrote ({reason})") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice")
    return members


def _check_size(value: Any) -> None:
    """Level by level, so that no document is deep enough to exhaust the stack."""
    level, items = [value], 0
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, (dict, list)):
                inner.extend(item.values() if isinstance(item, dict) else item)
        items += len(inner)
        if not inner:
            return
        if items > _MAX_ITEMS:
            raise ValueError(f"more than {_MAX_ITEMS} items")
        level = inner
    raise ValueError(f"deeper than {MAX_DEPTH} levels")


class Fields:
    """A JSON object whose fields are read by name and checked by type.

    Args:
        value: the parsed document.
        origin: the document's place, for errors.
    """

    def __init__(self, value: Any, origin: str) -> None:
        if not isinstance(value, dict):
            raise CacheCorruptError(f"{origin} is {_kind(value)}, expected an object")
        self._value: dict[str, Any] = value
        self._origin = origin

    def expect_names(self, names: set[str]) -> None:
        """Raises CacheCorruptError for missing and unknown fields."""
        if set(self._value) != names:
            odd = ", ".join(repr(name)[:80] for name in sorted(set(self._value) ^ names)[:4])
            raise CacheCorruptError(f"{self._origin} lacks or adds the fields {odd}")

    @property
    def names(self) -> list[str]:
        """Its fields."""
        return list(self._value)

    def integer(self, name: str, minimum: int, maximum: int) -> int:
        """A whole number within bounds; a boolean or 1.0 is not one."""
        value = self._value.get(name)
        if type(value) is not int or not minimum <= value <= maximum:
            raise CacheCorruptError(
                f"{self._origin}: {name} is {_kind(value)}, expected a whole number from {minimum} to {maximum}"
            )
        return value

    def number(self, name: str) -> float:
        """A number; a boolean is not one."""
        value = self._value.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise CacheCorruptError(f"{self._origin}: {name} is {_kind(value)}, expected a number")
        return float(value)

    def shape(self, name: str, max_length: int, maximum: int) -> tuple[int, ...]:
        """A shape: 1 to `max_length` whole numbers from 1 to `maximum`."""
        value = self._value.get(name)
        fits = isinstance(value, list) and 1 <= len(value) <= max_length
        if not fits or not all(type(side) is int and 1 <= side <= maximum for side in value or ()):
            raise CacheCorruptError(
                f"{self._origin}: {name} is {_kind(value)}, expected 1 to {max_length} whole numbers "
                f"from 1 to {maximum}"
            )
        return tuple(value or ())

    def text(self, name: str) -> str:
        """A string."""
        value = self._value.get(name)
        if not isinstance(value, str):
            raise CacheCorruptError(f"{self._origin}: {name} is {_kind(value)}, expected a string")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """An object."""
        return Fields(self._value.get(name), f"{self._origin}: {name}")._value

    def optional_mapping(self, name: str) -> dict[str, Any]:
        """An object; empty if there is no field of that name."""
        return self.mapping(name) if name in self._value else {}

    def optional_flag(self, name: str, default: bool) -> bool:
        """True or false; `default` if there is no field of that name."""
        value = self._value.get(name, default)
        if not isinstance(value, bool):
            raise CacheCorruptError(f"{self._origin}: {name} is {_kind(value)}, expected true or false")
        return value

    def optional_texts(self, name: str) -> list[str] | None:
        """A list of strings, or null."""
        value = self._value.get(name)
        if value is None and name in self._value:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise CacheCorruptError(f"{self._origin}: {name} is {_kind(value)}, expected strings or null")
        return value


def parse_sums(value: Any, origin: str) -> dict[str, int]:
    """Array -> CRC-32, from their document."""
    fields = Fields(value, f"{origin}: the list of arrays")
    return {name: fields.integer(name, 0, 0xFFFFFFFF) for name in fields.names}


def _kind(value: Any) -> str:
    shown = repr(value) if isinstance(value, (int, float, str, bool, type(None))) else f"a {type(value).__name__}"
    return shown if len(shown) <= 60 else shown[:60] + "..."
