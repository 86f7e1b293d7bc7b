"""Logit standardisation: the student matches the teacher's logits up to their mean and spread."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdkit.losses._checks import check_classes, to_logit_pair
from kdkit.types import to_compute_dtype


def standardize(logits: Tensor) -> Tensor:
    """Row z-score: (z - mean) / (1e-7 + std), std unbiased.

    Args:
        logits: [B, C], C >= 2. The gradient flows through mean and std. A constant row becomes 0.

    Returns:
        [B, C], float32 (float64 for float64 inputs).

    Source: Sun et al. 2024, "Logit Standardization in Knowledge Distillation", algorithm 1;
        sunshangquan/logit-standardization-KD.
    """
    check_classes("standardize", logits)
    values = to_compute_dtype(logits)
    centred = values - values.mean(dim=1, keepdim=True)
    # The norm of a zero row has gradient 0, and is several times quicker than std.
    std: Tensor = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / math.sqrt(values.shape[1] - 1)
    return centred * (1e-7 + std).reciprocal()


def standardized(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`loss` on standardised student and teacher logits, its labels and options unchanged.

    The base temperature and its factor T^2 are the loss's own: `standardized(create("kl", temperature=2.0))` is the
    paper's loss (which it weighs by 9). A loss without T^2 gets none.
    """

    @functools.wraps(loss)
    def wrapped(student_logits: Tensor, teacher_logits: Tensor, *args: Any, **options: Any) -> Tensor:
        student, teacher = to_logit_pair(student_logits, teacher_logits)
        return loss(standardize(student), standardize(teacher), *args, **options)

    return wrapped
