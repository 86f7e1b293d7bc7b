"""JSON from an untrusted file: bounded in size and depth, and of the expected types.

`Fields` reads a document field by field; a field that is missing, of another type or out of range raises
CacheCorruptError.
"""

from __future__ import annotations

from typing import Any

from kdkit.errors import CacheCorruptError
from kdkit.runtime import documents

_MAX_NAME = 255
_MAX_COMPONENTS = 3  # views/0000/logits


def parse_json(text: str, origin: str) -> Any:
    """Parses a JSON document of a cache within the bounds of kdkit.runtime.documents.

    Raises:
        CacheCorruptError: the text is something else; names `origin`.
    """
    return documents.parse_json(text, origin, error=CacheCorruptError)


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


def check_component(name: str, origin: str) -> None:
    """Raises CacheCorruptError for a name that could lead out of its group: a member has one component."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name) > _MAX_NAME:
        raise CacheCorruptError(f"{origin}: {name[:_MAX_NAME]!r} is not a name of a member: expected one without '/'")


def parse_sums(value: Any, origin: str) -> dict[str, int]:
    """Array -> CRC-32, from their document; every name is a path of two or three components."""
    fields = Fields(value, f"{origin}: the list of arrays")
    for name in fields.names:
        components = name.split("/", _MAX_COMPONENTS)
        if len(components) not in (2, _MAX_COMPONENTS):
            raise CacheCorruptError(f"{origin}: {name[:_MAX_NAME]!r} is not a dataset: expected GROUP/NAME")
        for component in components:
            check_component(component, origin)
    return {name: fields.integer(name, 0, 0xFFFFFFFF) for name in fields.names}


def _kind(value: Any) -> str:
    shown = repr(value) if isinstance(value, (int, float, str, bool, type(None))) else f"a {type(value).__name__}"
    return shown if len(shown) <= 60 else shown[:60] + "..."
