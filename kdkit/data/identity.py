"""The identity of a user's transform: its name, and a digest over everything that makes it draw what it draws.

Covered: every parameter that the objects hold, tensors and arrays by their bytes; the source of the user's functions
and methods, of what they close over, and of the globals that they name. Not covered: the code of libraries, class
attributes, static and class methods, properties, and globals that only a nested function names; those the pixel hash of
a cache guards, as it does everything else. An object that cannot be described is refused.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from kdkit.errors import ConfigError

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, np.dtype, np.generic)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_LIBRARIES = {
    "albumentations",
    "builtins",
    "collections",
    "cv2",
    "functools",
    "numpy",
    "PIL",
    "random",
    "timm",
    "torch",
}
_LIBRARIES |= {"torchvision", "math", "typing", "enum", "kdkit"}


def transform_identity(transform: Callable[..., Any]) -> str:
    """`sha256:... name`: equal for equal transforms in any process, different where a parameter or their code differs.

    Raises:
        ConfigError: the transform holds something that cannot be described; names it.
    """
    digest = hashlib.sha256()
    for text in _describe(transform, ()):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return f"sha256:{digest.hexdigest()[:32]} {_name(transform)}"


def _describe(value: Any, within: tuple[int, ...]) -> Iterator[str]:
    """What makes `value` what it is, piece by piece, in a fixed order."""
    if isinstance(value, enum.Enum):
        yield f"{_qualified(type(value))}.{value.name}"
    elif isinstance(value, _PLAIN):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, (torch.Tensor, np.ndarray)):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
        yield f"array {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    elif isinstance(value, _GENERATORS):
        yield _qualified(type(value))  # its state does not count: a view must not depend on it
    elif isinstance(value, (types.ModuleType, types.BuiltinFunctionType)):
        yield str(value.__name__)
    elif id(value) in within:
        yield f"the one {len(within) - within.index(id(value))} above"  # a function that names itself, say
    else:
        yield from _describe_compound(value, (*within, id(value)))


def _describe_compound(value: Any, within: tuple[int, ...]) -> Iterator[str]:
    yield _qualified(type(value))
    if isinstance(value, (list, tuple)):
        parts = list(value)
    elif isinstance(value, (set, frozenset)):
        parts = sorted(value, key=repr)
    elif isinstance(value, dict):
        parts = [part for key in sorted(value, key=repr) for part in (key, value[key])]
    elif isinstance(value, types.FunctionType):
        parts = _parts_of_function(value)
    elif isinstance(value, types.MethodType):
        parts = [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, type):
        parts = _parts_of_class(value)
    else:
        parts = [type(value), _state(value)]
    for part in parts:
        yield from _describe(part, within)


def _parts_of_function(function: types.FunctionType) -> list[Any]:
    if _is_library(function):
        return [_qualified(function)]
    used = inspect.getclosurevars(function)
    return [_source(function), function.__defaults__, function.__kwdefaults__, dict(used.nonlocals), dict(used.globals)]


def _parts_of_class(cls: type) -> list[Any]:
    if _is_library(cls):
        return [_qualified(cls)]
    members = {name: member for name, member in vars(cls).items() if isinstance(member, types.FunctionType)}
    return [_qualified(cls), members, list(cls.__bases__)]


def _state(value: Any) -> Any:
    """The attributes of an object."""
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ()) if hasattr(value, name)]
    if not hasattr(value, "__dict__") and not slots:
        raise ConfigError(
            f"the transform holds a {_qualified(type(value))}, whose content cannot be told from another's: name the "
            "transform yourself, ReplayedDataset(..., transform=..., transform_id='my-transform-1')"
        )
    return {**getattr(value, "__dict__", {}), **{name: getattr(value, name) for name in slots}}


def _source(function: types.FunctionType) -> str:
    """Its text; where there is none, as in a console, its compiled code."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = function.__code__
        return repr((code.co_code, code.co_names, [part for part in code.co_consts if not hasattr(part, "co_code")]))


def _is_library(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in _LIBRARIES


def _qualified(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _name(transform: Callable[..., Any]) -> str:
    named = transform if isinstance(transform, (types.FunctionType, types.MethodType)) else type(transform)
    return _qualified(named)
