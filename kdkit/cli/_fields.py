"""The fields of a configuration, nested ones with dots: name, type, default and meaning, read from the dataclass."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from kdkit.config.choices import alternatives, choices
from kdkit.errors import UsageError, nearest

_PLAIN = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Field:
    """One field of a configuration that the command line can set."""

    path: str
    """Its name, with dots before the names of nested fields, e.g. train.lr."""
    hint: Any
    """Its type."""
    default: Any
    """Its default; dataclasses.MISSING if it is required."""
    meaning: str
    """Its docstring, on one line."""
    is_required: bool
    """Whether a command line must give it: it has no default, and no part of the configuration that may be left out."""

    @property
    def metavar(self) -> str:
        """What help writes for its value."""
        kinds = alternatives(self.hint)
        if (known := choices(self.hint)) and not {int, float, str} & {*kinds}:
            return f"{{{','.join(map(str, known))}}}"
        return "N" if int in kinds else "X" if float in kinds else self.path.rpartition(".")[2].upper()

    @property
    def is_flag(self) -> bool:
        """Whether it is a boolean, given as a bare flag."""
        return bool in alternatives(self.hint)

    @property
    def is_list(self) -> bool:
        """Whether it is a list of names or numbers, given one by one or with commas."""
        return self.numbers is not None or tuple[str, ...] in alternatives(self.hint)

    @property
    def numbers(self) -> str | None:
        """What a list of numbers takes, in words: "numbers", or how many; None if it is none."""
        kinds = [get_args(kind) for kind in alternatives(self.hint) if get_origin(kind) is tuple]
        if not any({*items} <= {float, ...} for items in kinds):
            return None
        return "numbers" if self.length is None else f"{self.length} numbers"

    @property
    def length(self) -> int | None:
        """How many items a list has, if their number is fixed."""
        kinds = [get_args(kind) for kind in alternatives(self.hint) if get_origin(kind) is tuple]
        return next((len(items) for items in kinds if ... not in items), None)

    @property
    def splits_commas(self) -> bool:
        """Whether a comma separates items of the list; paths, which may also be given singly, may contain commas."""
        return self.is_list and str not in alternatives(self.hint)

    @property
    def is_mapping(self) -> bool:
        """Whether it takes names and values, e.g. {k: 10}."""
        return any(get_origin(kind) is dict for kind in alternatives(self.hint))

    @property
    def expected(self) -> str:
        """What values it takes, in words; "" where any text may be one."""
        kinds = alternatives(self.hint)
        if self.numbers is not None:
            return self.numbers
        if any(kind not in _PLAIN and kind is not type(None) and not choices(kind) for kind in kinds):
            return ""
        named = [*map(str, choices(self.hint))]
        listed = [", ".join(named[:-1])] * (len(named) > 1) + named[-1:]
        return " or ".join([*(text for kind, text in _PLAIN.items() if kind in kinds), *listed])

    def check(self, flag: str, value: str) -> None:
        """Checks the text of a value, as far as the type tells without the parser of nested values.

        Raises:
            UsageError: the type has no such value.
        """
        kinds, known = alternatives(self.hint), [str(choice) for choice in choices(self.hint)]
        if not self.expected or value in known or (value in ("null", "None") and type(None) in kinds):
            return
        if self.numbers is not None and all(is_number(item) for item in split_list(value)):
            return
        for kind in _PLAIN:
            if kind in kinds and _parses(kind, value):
                return
        raise UsageError(f"{flag} takes {self.expected}, got {value!r}{nearest(value, known)}")


def is_number(text: str) -> bool:
    """Whether Python reads the text as a number."""
    return _parses(float, text)


def split_list(value: str) -> list[str]:
    """The items of a list as it is typed, with or without brackets and quotes."""
    items = [item.strip(" '\"") for item in value.strip("[]()").split(",")]
    return [item for item in items if item]


def fields_of(config_class: type, prefix: str = "", *, is_optional: bool = False) -> Iterator[Field]:
    """The fields of a dataclass, those of nested dataclasses instead of these."""
    hints, meanings = get_type_hints(config_class), _meanings(config_class)
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        nested = [kind for kind in alternatives(hint) if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if nested:
            yield from fields_of(nested[0], f"{prefix}{field.name}.", is_optional=is_optional or default is None)
        else:
            is_required = default is dataclasses.MISSING and not is_optional
            yield Field(prefix + field.name, hint, default, meanings.get(field.name, ""), is_required)


@functools.cache
def _meanings(config_class: type) -> dict[str, str]:
    """Field -> the docstring below it, of the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed([kind for kind in config_class.__mro__ if dataclasses.is_dataclass(kind)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                found[field.target.id] = " ".join(str(text.value.value).split())  # type: ignore[attr-defined]
    return found


def _parses(kind: type, value: str) -> bool:
    try:
        kind(value)
    except ValueError:
        return False
    return True
