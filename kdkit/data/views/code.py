"""What a user's functions and classes do, in parts that can be compared: text, defaults, and whatever they refer to."""

from __future__ import annotations

import dis
import enum
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LIBRARIES = {"albumentations", "cv2", "kdkit", "numpy", "PIL", "timm", "torch", "torchvision"}  # also from a checkout
_INSTALLED = {"site-packages", "dist-packages"}
_WRAPPERS = (staticmethod, classmethod, property, functools.cached_property)
_CODE = (types.FunctionType, *_WRAPPERS)


@dataclass(frozen=True, eq=False)
class UsedModule:
    """A module of the user's, of which a function uses what it names."""

    module: types.ModuleType
    names: frozenset[str]
    """Every attribute that the function names, of this module or of anything else."""

    def parts(self) -> list[Any]:
        """Its name, and what is used of it."""
        return [self.module.__name__, _used(vars(self.module), self.names, self.names)]


def is_library(value: Any) -> bool:
    """Whether a class, or the code of a function, is not the user's own."""
    name = value.__globals__.get("__name__") if isinstance(value, types.FunctionType) else value.__module__
    return _is_library_module(str(name).partition(".")[0])


def parts_of_function(function: types.FunctionType) -> list[Any]:
    """Of a library's function its name and what it holds; of the user's also its text and the globals that it uses."""
    code = function.__code__
    held = [function.__defaults__, function.__kwdefaults__, in_order(function.__dict__), _closed_over(function)]
    if is_library(function):
        return [function.__globals__.get("__name__"), code.co_name, *held]
    codes = list(_with_inner(code))
    loaded = {step.argval for part in codes for step in dis.get_instructions(part) if step.opname in _LOADS_GLOBAL}
    names = frozenset(name for part in codes for name in part.co_names)
    return [_text(code), *held, _used(function.__globals__, loaded, names)]


def parts_of_class(cls: type) -> list[Any]:
    """Its name; of the user's also the bases, and all members but those that Python writes for itself."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    return [name] if is_library(cls) else [name, in_order(_members(cls)), list(cls.__bases__)]


def parts_of_wrapper(wrapper: Any) -> list[Any] | None:
    """The functions in a static method, class method or property; None of anything else."""
    if not isinstance(wrapper, _WRAPPERS):
        return None
    return [getattr(wrapper, name, None) for name in ("__func__", "func", "fget", "fset", "fdel")]


def parts_of_code(code: types.CodeType) -> list[Any]:
    """What was compiled, without the places in the file."""
    return [code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_consts]


def in_order(named: Any) -> dict[str, Any]:
    """By name, where the order in which attributes were set means nothing."""
    return dict(sorted(named.items()))


_LOADS_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code, and that of the functions, lambdas and comprehensions inside it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _with_inner(const)


def _used(space: dict[str, Any], loaded: set[str] | frozenset[str], names: frozenset[str]) -> dict[str, Any]:
    used = {name: space[name] for name in sorted(loaded & space.keys())}
    return {name: UsedModule(v, names) if _is_own_module(v) else v for name, v in used.items()}


def _is_own_module(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and not _is_library_module(value.__name__.partition(".")[0])


@functools.cache
def _is_library_module(name: str) -> bool:
    """Of Python's standard library, or installed; a module of the user's may be called like one of Python's."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if name in _LIBRARIES or file is None:
        return name in _LIBRARIES | sys.stdlib_module_names
    return file.startswith(sysconfig.get_path("stdlib")) or bool(_INSTALLED & set(Path(file).parts))


def _closed_over(function: types.FunctionType) -> dict[str, Any]:
    held = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held[name] = cell.cell_contents
        except ValueError:  # not bound yet
            held[name] = None
    return in_order(held)


def _members(cls: type) -> dict[str, Any]:
    if issubclass(cls, enum.Enum):
        code = {name: member for name, member in vars(cls).items() if isinstance(member, _CODE)}
        return {**code, **{name: member.value for name, member in cls.__members__.items()}}
    return {name: member for name, member in vars(cls).items() if _matters(name, member)}


def _matters(name: str, member: Any) -> bool:
    """Not docstrings, annotations and the like, and nothing that stands for a slot or a field of a tuple."""
    if isinstance(member, _CODE):
        return True
    is_descriptor = hasattr(type(member), "__get__") and not hasattr(member, "__dict__")
    return not (name.startswith("__") or name == "_abc_impl" or is_descriptor)


def _text(code: types.CodeType) -> Any:
    """Its lines, and where in them a lambda begins; where there are none, as in a console, its compiled code."""
    try:
        lines = inspect.getsource(code)  # of the function, a decorator's text would not be found
    except (OSError, TypeError):
        return code
    return lines, _column(code) if code.co_name == "<lambda>" else 0


def _column(code: types.CodeType) -> int:
    """Characters to the left of a lambda's body; tells several in one line apart. Python 3.10 does not know."""
    places = code.co_positions() if hasattr(code, "co_positions") else ()
    return min(
        ((line, column) for line, _, column, end in places if line and column is not None and end), default=(0, 0)
    )[1]
