"""What every logit loss asks of its arguments, and the dtype it computes in."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit.errors import ShapeError


def to_logit_pair(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Both logits [B, C] in at least float32, the teacher's without gradient; raises ShapeError if they do not pair."""
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ShapeError(
            "student_logits and teacher_logits must have one shape [B, C], got "
            f"{list(student_logits.shape)} and {list(teacher_logits.shape)}"
        )
    return to_compute_dtype(student_logits), to_compute_dtype(teacher_logits.detach())


def to_compute_dtype(tensor: Tensor) -> Tensor:
    """`tensor` in float32, or in float64 when it is float64 already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
