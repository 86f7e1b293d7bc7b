"""The identity of a user's transform: its name, and a digest over everything that makes it draw what it draws.

Covered: every parameter that the objects hold, tensors and arrays by their bytes; the text of the user's functions and
methods, of what they close over and of the globals that they or the functions inside them name, also by way of a module
of the user's; of the user's classes all members, inherited ones too: plain attributes, methods, static and class
methods, properties. Not covered: the code of installed packages, and what a function imports as it runs; those the
pixel hash of a cache guards, as it does everything else. An object that cannot be described is refused.
"""

from __future__ import annotations

import collections
import copyreg
import enum
import functools
import hashlib
import logging
import pathlib
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from kdkit.data.views.code import (
    UsedModule,
    in_order,
    is_library,
    parts_of_class,
    parts_of_code,
    parts_of_function,
    parts_of_wrapper,
)
from kdkit.errors import ConfigError

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, np.dtype, np.generic)
_WRITTEN = (*_PLAIN, pathlib.PurePath)  # their repr tells them apart
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_CONTAINERS = (list, tuple, set, frozenset, dict, collections.deque)


def transform_identity(transform: Callable[..., Any]) -> str:
    """`sha256:... name`: equal for equal transforms in any process, different where a parameter or their code differs.

    Raises:
        ConfigError: the transform holds something that cannot be described; names it.
    """
    return f"sha256:{_digest(transform, ())[:32]} {_name(transform)}"


def _digest(value: Any, within: tuple[int, ...]) -> str:
    digest = hashlib.sha256()
    for text in _Description().of(value, within):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


class _Description:
    """What makes a value what it is, piece by piece, in a fixed order."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[int, Any]] = {}  # classes and functions, which refer to each other: each once

    def of(self, value: Any, within: tuple[int, ...]) -> Iterator[str]:
        """The pieces of `value`, which lies within the values that have these ids."""
        if isinstance(value, enum.Enum):
            yield f"{_qualified(type(value))}.{value.name}"
            yield from () if is_library(type(value)) else self.of([type(value), value.value], within)
        elif isinstance(value, _WRITTEN):
            yield f"{type(value).__name__} {value!r}"
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            yield from self._of_array(value, within)
        elif isinstance(value, _GENERATORS):
            yield _qualified(type(value))  # its state does not count: a view must not depend on it
        elif isinstance(value, (types.ModuleType, types.BuiltinFunctionType)):
            yield str(value.__name__)
            owner = getattr(value, "__self__", None)  # of a method, such as a dictionary's get
            if not isinstance(owner, (types.ModuleType, type(None))):
                yield from self.of(owner, within)
        elif isinstance(value, logging.Logger):
            yield f"logger {value.name}"
        else:
            yield from self._of_compound(value, within)

    def _of_array(self, value: Any, within: tuple[int, ...]) -> Iterator[str]:
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
        yield f"array {array.dtype} {array.shape}"
        yield from self.of(
            array.tolist() if array.dtype.hasobject else hashlib.sha256(array.tobytes()).hexdigest(), within
        )

    def _of_compound(self, value: Any, within: tuple[int, ...]) -> Iterator[str]:
        key = id(value.module if isinstance(value, UsedModule) else value)
        if key in within:
            yield f"the one {len(within) - within.index(key)} above"  # a function that names itself, say
            return
        if key in self._told:
            yield f"number {self._told[key][0]}"
            return
        if isinstance(value, (type, types.FunctionType)) and not getattr(value, "__closure__", None):
            self._told[key] = len(self._told), value
        yield _qualified(type(value))
        for part in _parts(value, (*within, key)):
            yield from self.of(part, (*within, key))


def _parts(value: Any, within: tuple[int, ...]) -> list[Any]:
    """What a value is made of."""
    if isinstance(value, types.FunctionType):
        return parts_of_function(value)
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, in_order(value.keywords)]
    if isinstance(value, type):
        return parts_of_class(value)
    if isinstance(value, types.CodeType):
        return parts_of_code(value)
    if isinstance(value, UsedModule):
        return value.parts()
    if isinstance(value, _CONTAINERS):
        own = [] if type(value) in _CONTAINERS else [type(value), _attributes(value)]
        return [*_items(value, within), *own]
    return parts_of_wrapper(value) or [type(value), _state(value)]


def _items(container: Any, within: tuple[int, ...]) -> list[Any]:
    """A list's and a dict's in their order, which a transform may follow; a set's by digest, as it has none."""
    if isinstance(container, dict):
        return [part for item in container.items() for part in item]
    if isinstance(container, (set, frozenset)):
        return sorted(_digest(item, within) for item in container)
    if isinstance(container, collections.deque):
        return [container.maxlen, *container]
    return list(container)


def _state(value: Any) -> Any:
    """The attributes of an object, or what it would be pickled by."""
    attributes = _attributes(value)
    if hasattr(value, "__dict__") or attributes:
        return attributes
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        return reduce(value) if reduce else value.__reduce_ex__(2)
    except (TypeError, AttributeError, ValueError):
        raise ConfigError(
            f"the transform holds a {_qualified(type(value))}, whose content cannot be told from another's: name the "
            "transform yourself, ReplayedDataset(..., transform=..., transform_id='my-transform-1')"
        ) from None


def _attributes(value: Any) -> dict[str, Any]:
    """Of its dictionary and its slots."""
    slots = [
        (name, slot)
        for cls in type(value).__mro__
        for name, slot in vars(cls).items()
        if isinstance(slot, types.MemberDescriptorType)
    ]
    held = {name: slot.__get__(value) for name, slot in slots if hasattr(value, slot.__name__)}
    return in_order({**getattr(value, "__dict__", {}), **held})


def _qualified(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _name(transform: Callable[..., Any]) -> str:
    named = transform if isinstance(transform, (types.FunctionType, types.MethodType)) else type(transform)
    return _qualified(named)
