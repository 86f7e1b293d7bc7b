"""Losses against several teachers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.errors import ConfigError, ShapeError
from kdkit.types import to_compute_dtype

Combine = Literal["probabilities", "losses"]


def mean_teacher(teacher_logits: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Log-probabilities of the weighted mean of the teachers' distributions at temperature 1; they serve as logits.

    log sum_i w_i softmax(z_i), with the weights scaled to sum 1.

    Args:
        teacher_logits: [B, C] per teacher; no gradient flows into them.
        weights: one number >= 0 per teacher; equal when None.

    Returns:
        [B, C], float32 (float64 for float64 inputs).
    """
    shares = _check_weights(teacher_logits, weights)
    total = sum(shares)
    if total <= 0:
        raise ConfigError(f"weights must not all be 0, got {shares}")
    parts = [
        F.log_softmax(to_compute_dtype(logits.detach()), dim=1) + math.log(share / total)
        for logits, share in zip(teacher_logits, shares, strict=True)
        if share > 0
    ]
    return functools.reduce(torch.logaddexp, parts)


def multi_teacher(
    loss: Callable[..., Tensor], *, combine: Combine = "probabilities", weights: Sequence[float] | None = None
) -> Callable[..., Tensor]:
    """`loss` against a sequence of teachers: f(student_logits, [teacher_logits, ...], ...).

    Args:
        loss: any logit loss.
        combine: 'probabilities' calls it once, on `mean_teacher`; 'losses' sums it over the teachers.
        weights: one number >= 0 per teacher. Under 'probabilities' they are scaled to sum 1; under 'losses' each
            multiplies its teacher's loss unchanged (1 each when None).
    """
    if combine not in ("probabilities", "losses"):
        raise ConfigError(f"combine must be 'probabilities' or 'losses', got {combine!r}")

    @functools.wraps(loss)
    def wrapped(student_logits: Tensor, teacher_logits: Sequence[Tensor], *args: Any, **options: Any) -> Tensor:
        if combine == "probabilities":
            return loss(student_logits, mean_teacher(teacher_logits, weights), *args, **options)
        shares = _check_weights(teacher_logits, weights)
        terms = [
            share * loss(student_logits, z, *args, **options) for share, z in zip(shares, teacher_logits, strict=True)
        ]
        return functools.reduce(torch.add, terms)

    return wrapped


def _check_weights(teacher_logits: Tensor | Sequence[object], weights: Sequence[float] | None) -> list[float]:
    if isinstance(teacher_logits, Tensor) or len(teacher_logits) == 0:
        raise ShapeError("teacher_logits must be a non-empty sequence of tensors [B, C], one per teacher")
    shapes = []
    for logits in teacher_logits:
        if not isinstance(logits, Tensor):
            kind = type(logits).__name__
            raise ShapeError(f"teacher_logits must be tensors [B, C], got {kind}; pass its .to_dense()")
        shapes.append(list(logits.shape))
    if any(shape != shapes[0] for shape in shapes) or len(shapes[0]) != 2:
        raise ShapeError(f"teacher_logits must have one shape [B, C], got {' and '.join(map(str, shapes))}")
    shares = [1.0] * len(shapes) if weights is None else [float(w) for w in weights]
    if len(shares) != len(shapes) or min(shares) < 0:
        raise ConfigError(f"weights must hold one number >= 0 for each of {len(shapes)} teachers, got {shares}")
    return shares
