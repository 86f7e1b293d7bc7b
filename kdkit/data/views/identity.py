"""The identity of a custom transform: the text that a recipe records and a cache compares."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from typing import Any

from kdkit.errors import ConfigError

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")


def transform_identity(transform: Callable[..., Any]) -> str:
    """The qualified name of a transform and its repr, on one line.

    The identity sees what the repr shows: for torchvision's, timm's and albumentations' transforms their parameters,
    for a dataclass its fields. It cannot see code, nor anything that the repr leaves out, such as the function within
    torchvision's Lambda. A change that it cannot see is found by the pixel hashes of the cache, which are compared
    with newly drawn views when the cache is opened.

    Raises:
        ConfigError: the repr holds a memory address, as those of functions and of plain objects do, so it differs from
            process to process.
    """
    named = transform if isinstance(transform, (types.FunctionType, types.MethodType)) else type(transform)
    name, shown = f"{named.__module__}.{named.__qualname__}", " ".join(repr(transform).split())
    if _ADDRESS.search(shown):
        raise ConfigError(
            f"the repr of the transform {name} is {shown[:80]!r}, with an address that differs in each process: "
            "name it by transform_id='my-transform-1' or the like, and change that name when the transform changes"
        )
    return f"{name} {shown}"
