"""Comparing the settings that a cache was made with to the settings of a run, field by field."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import zip_longest
from typing import Any

from kdkit.errors import CacheMismatchError

_UNCOMPARED = {"versions"}  # a changed library matters only if it changes pixels or weights, which are compared
_SHOWN = 80
_ADVICE = {"recipe.num_views": "add views with `kdkit cache extend`, or use as many as the cache has"}


def check_match(
    what: str, cached: Mapping[str, Any], current: Mapping[str, Any], origin: str, allow: Collection[str] = ()
) -> None:
    """Compares two documents field by field.

    Args:
        what: name of the documents, e.g. "teacher" or "recipe"; the prefix of field names.
        cached: the cache's document.
        current: the run's document.
        origin: the cache and its path, for the message.
        allow: fields, such as "recipe.seed", whose difference is accepted.

    Raises:
        CacheMismatchError: names the first field that differs, and both values.
    """
    for field, then, now in differences(what, cached, current):
        if field not in allow:
            place = ""
            if max(len(repr(then)), len(repr(now))) > _SHOWN:
                place, then, now = first_item(then, now)
            raise CacheMismatchError(
                f"{origin} was made with {field}{place} = {_show(then)}, this run has {_show(now)}: "
                f"{_ADVICE.get(field, 'use the same setting, or build another cache in another file')}"
            )


def differences(what: str, cached: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(field, cached value, current value) of each field that differs, nested fields joined by dots: members.0.name."""
    for name in sorted(set(cached) | set(current)):
        if name in _UNCOMPARED:
            continue
        then, now = (_numbered(document.get(name)) for document in (cached, current))
        if isinstance(then, Mapping) and isinstance(now, Mapping):
            yield from differences(f"{what}.{name}", then, now)
        elif then != now:
            yield f"{what}.{name}", then, now


def first_item(then: Any, now: Any) -> tuple[str, Any, Any]:
    """("[2]", item, other item) for the first place at which two lists differ; other values as they are, after ""."""
    if not (isinstance(then, list) and isinstance(now, list)):
        return "", then, now
    for place, (item, other) in enumerate(zip_longest(then, now)):
        if item != other:
            return f"[{place}]", item, other
    raise AssertionError("the lists are equal")


def _numbered(value: Any) -> Any:
    """A list of documents, such as the members of an ensemble, as a document with their numbers as names."""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        return {str(number): part for number, part in enumerate(value)}
    return value


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
