"""The checks that feature losses make of their two arguments.

Dimensions: B batch, D width, H W height and width, N tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from kdkit.errors import ShapeError
from kdkit.types import to_compute_dtype


def to_feature_pair(student_feature: Tensor, teacher_feature: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both features in at least float32, the teacher's without gradient; raises if kind or batch differ."""
    shapes = f"{list(student_feature.shape)} and {list(teacher_feature.shape)}"
    if student_feature.ndim != teacher_feature.ndim or student_feature.ndim not in (2, 3, 4):
        raise ShapeError(
            f"student_feature and teacher_feature must both be [B, D], [B, N, D] or [B, D, H, W], got {shapes}"
        )
    if student_feature.shape[0] != teacher_feature.shape[0]:
        raise ShapeError(f"student_feature and teacher_feature must have one batch size B, got {shapes}")
    if 0 in student_feature.shape or 0 in teacher_feature.shape:
        raise ShapeError(f"student_feature and teacher_feature must not be empty, got {shapes}")
    if not (student_feature.is_floating_point() and teacher_feature.is_floating_point()):
        raise ShapeError(
            f"student_feature and teacher_feature must be floating point, got {student_feature.dtype} "
            f"and {teacher_feature.dtype} in {shapes}"
        )
    return to_compute_dtype(student_feature), to_compute_dtype(teacher_feature.detach())


def to_row_pair(student_feature: Tensor, teacher_feature: Tensor) -> tuple[Tensor, Tensor]:
    """`to_feature_pair` with every sample flattened to one row: [B, D_s] and [B, D_t], widths free."""
    student, teacher = to_feature_pair(student_feature, teacher_feature)
    return rearrange(student, "b ... -> b (...)"), rearrange(teacher, "b ... -> b (...)")


def width_dim(feature: Tensor) -> int:
    """The dimension that counts the width: 1 of [B, D] and [B, D, H, W], 2 of [B, N, D]."""
    return 2 if feature.ndim == 3 else 1


def check_width(feature: Tensor, width: int, side: str = "student") -> None:
    """Raises unless a feature of `side` has this width D."""
    if feature.shape[width_dim(feature)] != width:
        raise ShapeError(f"{side}_feature must have width {width}, got {list(feature.shape)}")


def check_same_width(student: Tensor, teacher: Tensor) -> None:
    """Raises unless both features have one width D, and token features one N."""
    dim = width_dim(student)
    shapes = f"{list(student.shape)} and {list(teacher.shape)}"
    if student.shape[dim] != teacher.shape[dim]:
        raise ShapeError(
            f"student_feature and teacher_feature differ in width D: {shapes}; project the student's first "
            f"(student_width={student.shape[dim]}, teacher_width={teacher.shape[dim]})"
        )
    check_same_tokens(student, teacher)


def check_same_tokens(student: Tensor, teacher: Tensor) -> None:
    """Raises unless token features [B, N, D] have one N; features of other kinds pass."""
    if student.ndim == 3 and student.shape[1] != teacher.shape[1]:
        raise ShapeError(
            "student_feature and teacher_feature differ in tokens N: "
            f"{list(student.shape)} and {list(teacher.shape)}; drop class tokens or choose other taps"
        )


def resize_map(feature: Tensor, like: Tensor) -> Tensor:
    """Maps [B, D, H, W] interpolated bilinearly to the height and width of `like`; anything else unchanged."""
    if feature.ndim != 4 or feature.shape[2:] == like.shape[2:]:
        return feature
    return F.interpolate(feature, size=list(like.shape[2:]), mode="bilinear", align_corners=False)


def unit(rows: Tensor) -> Tensor:
    """Vectors of the last dimension scaled to L2 norm 1; a zero vector stays zero, with zero gradient."""
    squared = rows.square().sum(dim=-1, keepdim=True)
    is_zero = squared == 0
    return rows * torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squared).rsqrt())
