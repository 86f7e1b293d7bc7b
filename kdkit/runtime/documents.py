"""The bounds on what a document may claim: JSON and YAML of any origin, parsed or refused in one line.

Size comes first, from the file (kdkit.runtime.reading). Here are the bounds within it: nesting, number of items, length
of numbers, names given twice, YAML aliases. They are checked before memory is taken for what a document claims.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

from kdkit.errors import ConfigError, KdkitError, printable

MAX_DEPTH = 16
"""Levels of lists and mappings within each other."""
MAX_ITEMS = 1 << 20
"""Items of all lists and mappings together; an aliased part counts each time."""
MAX_INTEGER = 1 << 63
"""Whole numbers are smaller than this in magnitude, as int64 of torch and numpy is."""
_MAX_NUMBER_TEXT = 40
_MAX_REASON = 200
_FLAW = "beyond the bounds"
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

Make = Callable[[str], KdkitError]
"""Makes an error of a message: a class of kdkit.errors."""


def parse_json(content: str | bytes, origin: str, *, error: Make = ConfigError, max_items: int = MAX_ITEMS) -> Any:
    """Parses JSON of at most 16 levels and 2^20 items, in which no object has a name twice and integers fit int64.

    Args:
        content: the text, or its bytes in UTF-8.
        origin: the file or part of one that it stands in, for errors.
        error: class of the error.
        max_items: a lower limit of items.

    Raises:
        KdkitError: of class `error`, in one line that begins with `origin`.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        if _may_hold_more(text, max_items):
            raise ValueError(f"more than {max_items:,} items")
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_integer)
        _check_depth(value)
    except (ValueError, RecursionError, MemoryError) as found:
        raise error(f"{origin} is not JSON that kdkit can read: {_reason(found)}") from None
    return value


def parse_yaml(
    content: str | bytes,
    origin: str,
    *,
    error: Make = ConfigError,
    max_items: int = MAX_ITEMS,
    max_aliases: int = 0,
) -> Any:
    """Parses YAML into plain values as yaml.safe_load does, within the bounds of `parse_json`.

    Args:
        content, origin, error, max_items: as for `parse_json`.
        max_aliases: how many aliases (`*name`) it may hold; a file written by hand needs none, yaml.dump writes them.

    Raises:
        KdkitError: of class `error`, in one line that begins with `origin` and names the line of the document.
    """
    try:
        text = content.decode() if isinstance(content, bytes) else content
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _Nodes(max_items, max_aliases).check(root)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as found:
        line = f", line {found.problem_mark.line + 1}" if found.problem_mark else ""
        kind = "" if found.context == _FLAW else "not valid YAML: "
        raise error(f"{origin}{line}: {kind}{_reason(found.problem or found)}") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, RecursionError, MemoryError) as found:
        raise error(f"{origin}: not valid YAML: {_reason(found)}") from None  # ValueError: not UTF-8, or month 13


def _flaw(node: yaml.Node, reason: str) -> yaml.MarkedYAMLError:
    """The error for what safe_load would take but no document of kdkit may hold."""
    return yaml.MarkedYAMLError(_FLAW, None, reason, node.start_mark)


class _Nodes:
    """Checks the nodes of one YAML document before values are made of them."""

    def __init__(self, max_items: int, max_aliases: int) -> None:
        self._max_items, self._aliases_left = max_items, max_aliases
        self._sizes: dict[int, int] = {}  # 0 while the node is being measured

    def check(self, node: yaml.Node, depth: int = 0) -> int:
        """The number of nodes that `node` stands for, itself included."""
        if id(node) in self._sizes:
            self._aliases_left -= 1
            if self._aliases_left < 0 or self._sizes[id(node)] == 0:
                raise _flaw(node, "an alias (*); write the value out")
            return self._sizes[id(node)]
        self._sizes[id(node)] = 0
        if depth > MAX_DEPTH:
            raise _flaw(node, f"deeper than {MAX_DEPTH} levels")
        size = 1
        for member in self._members(node):
            size += self.check(member, depth + 1)
            if size > self._max_items:
                raise _flaw(node, f"more than {self._max_items:,} items")
        self._sizes[id(node)] = size
        return size

    def _members(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.MappingNode):
            _check_unique(node)
            return [member for pair in node.value for member in pair]
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if node.tag in _NUMBERS and len(node.value) > _MAX_NUMBER_TEXT:
            raise _flaw(node, f"a number of {len(node.value)} characters")
        return []


def _check_unique(node: yaml.MappingNode) -> None:
    """Of a key that is given twice, safe_load would keep the last."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise _flaw(key, f"{key.value[:_MAX_NUMBER_TEXT]!r} is given twice")
            seen.add(key.value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice")
    return members


def _integer(digits: str) -> int:
    if len(digits) > _MAX_NUMBER_TEXT:
        raise ValueError(f"a number of {len(digits)} digits")
    value = int(digits)
    if not -MAX_INTEGER <= value < MAX_INTEGER:
        raise ValueError(f"the whole number {digits}, which is beyond 64 bits")
    return value


def _may_hold_more(text: str, max_items: int) -> bool:
    """Whether more items are written than allowed; counted before parsing, since `[[],[],` takes 20 times its size."""
    return _num_openings(text) > max_items and _num_openings(_STRING.sub("", text)) > max_items


def _num_openings(text: str) -> int:
    return text.count(",") + text.count("[") + text.count("{")


def _check_depth(value: Any) -> None:
    """Level by level, so that no document is deep enough to exhaust the stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError(f"deeper than {MAX_DEPTH} levels")


def _reason(found: object) -> str:
    if isinstance(found, RecursionError):
        return "it is nested too deeply"
    if isinstance(found, UnicodeDecodeError):
        return f"it is not text in UTF-8 ({found}): save it as UTF-8"
    text = " ".join(printable(str(found)).split())
    return text[:_MAX_REASON] or type(found).__name__
