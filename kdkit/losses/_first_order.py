"""Gradients that were computed with their value, and have no graph of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from kdkit.errors import ConfigError


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the `backward` of an autograd function, without a graph; raises ConfigError where a graph is required.

    torch's own once_differentiable takes such a gradient for a constant where the loss is differentiated directly, so
    that a second-order optimiser would get a wrong second derivative without an error.
    """
    plain = once_differentiable(backward)

    @functools.wraps(backward)
    def checked(*args: Any) -> Any:
        # The engine enables gradients here only under create_graph=True; the compiler knows no second derivatives.
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            raise ConfigError(
                "the gradient of this loss is computed with its value and cannot be differentiated once more, as "
                "create_graph=True and second-order optimisers (adahessian) do: take another optimiser, or a loss such "
                "as kl"
            )
        return plain(*args)

    return checked
