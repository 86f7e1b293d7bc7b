"""A value whose gradient was computed with it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, autograd

from kdkit.losses._first_order import first_order


class Known(autograd.Function):
    """`Known.apply(student, value, slope)` is `value` [], with the gradient `slope` for `student`, of its shape.

    Nothing else is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """The value []; keeps its slope."""
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient for the student; nothing else takes one."""
        (slope,) = ctx.saved_tensors
        return slope * grad, None, None
