"""The checks that every loss makes of its arguments, and the dtype that it computes in.

Dimensions: B batch, C classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from numbers import Real
from typing import ParamSpec

import torch
from torch import Tensor

from kdkit.errors import ClassMismatchError, ConfigError, ShapeError
from kdkit.types import to_compute_dtype

P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Returns `loss` with autocast switched off: a matrix product would otherwise fall back to half precision."""

    @functools.wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        devices = [value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        with torch.autocast(devices[0] if devices else "cpu", enabled=False):
            return loss(*args, **kwargs)

    return wrapped


def to_logit_pair(student_logits: Tensor, teacher_logits: object) -> tuple[Tensor, Tensor]:
    """Returns both logits [B, C] in at least float32, the teacher's without gradient; raises if they do not pair."""
    if not isinstance(teacher_logits, Tensor):
        raise ShapeError(
            f"teacher_logits must be a tensor [B, C] here, got {type(teacher_logits).__name__}; only kl, soft_ce and "
            "dkd take SparseLogits, the others its .to_dense()"
        )
    check_logits(student_logits, list(teacher_logits.shape), teacher_logits.dtype)
    return to_compute_dtype(student_logits), to_compute_dtype(teacher_logits.detach())


def check_logits(student_logits: Tensor, teacher_shape: list[int], teacher_dtype: torch.dtype) -> None:
    """Raises unless student_logits [B, C] pair with a teacher of this shape and dtype."""
    student_shape = list(student_logits.shape)
    shapes = f"{student_shape} and {teacher_shape}"
    if len(student_shape) == 2 and len(teacher_shape) == 2 and student_shape[1] != teacher_shape[1]:
        raise ClassMismatchError(
            f"student_logits and teacher_logits differ in classes C: {shapes}; map the teacher's classes first"
        )
    if len(student_shape) != 2 or student_shape != teacher_shape:
        raise ShapeError(f"student_logits and teacher_logits must have one shape [B, C], got {shapes}")
    if 0 in student_shape:
        raise ShapeError(f"student_logits and teacher_logits must not be empty, got {shapes}")
    if not (student_logits.is_floating_point() and teacher_dtype.is_floating_point):
        raise ShapeError(
            f"student_logits and teacher_logits must be floating point, got {student_logits.dtype} and {teacher_dtype}"
        )


def soften(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns `logits` / T; the same tensor at T = 1, which saves two passes over it."""
    check_positive("temperature", temperature)
    return logits if isinstance(temperature, int | float) and temperature == 1 else logits / temperature


def check_positive(name: str, value: object) -> None:
    """Raises ConfigError unless the option called `name` is a finite number above 0; a tensor is not inspected."""
    if not isinstance(value, Tensor) and not (isinstance(value, Real) and 0 < float(value) < math.inf):
        raise ConfigError(f"{name} must be a finite number above 0, got {value!r}")


def check_classes(loss: str, logits: Tensor, at_least: int = 2) -> None:
    """Raises ShapeError unless logits [B, C] have enough classes for `loss`."""
    if logits.shape[-1] < at_least:
        raise ShapeError(f"{loss} needs at least {at_least} classes, got logits of shape {list(logits.shape)}")


def described(value: object) -> str:
    """An argument in errors: dtype and shape of a tensor, or else its type."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
