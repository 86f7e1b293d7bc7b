"""Losses by name, with their options bound: what a configuration file can say."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from kdkit.errors import ConfigError, UnknownNameError, nearest
from kdkit.losses.kl import kl

_LOSSES: dict[str, Callable[..., Tensor]] = {loss.__name__: loss for loss in (kl,)}


def available() -> list[str]:
    """The names that `create` takes, sorted."""
    return sorted(_LOSSES)


def create(name: str, **options: Any) -> Callable[..., Tensor]:
    """The loss called `name` with its options bound, e.g. `create("kl", temperature=4.0)`.

    Raises:
        UnknownNameError: no loss has this name.
        ConfigError: the loss has no such option.
    """
    if name not in _LOSSES:
        raise UnknownNameError(f"no loss is called {name!r}; known: {', '.join(available())}{nearest(name, _LOSSES)}")
    loss = _LOSSES[name]
    known = [p.name for p in inspect.signature(loss).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ConfigError(f"loss {name!r} has no option {option!r}; it takes {', '.join(known) or 'none'}")
    return functools.partial(loss, **options)
