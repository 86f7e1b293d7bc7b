"""A trainable projection from the student's width to the teacher's, and the feature losses after it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from kdkit.losses._features import check_width


class Projection(nn.Module):
    """A linear map of a feature's width at every position, D_s -> D_t: a 1 x 1 convolution where the feature is a map.

    Computes in its parameters' dtype with autocast off. Equal widths need no projection and get no parameters.

    Args:
        student_width: D_s, features of the student.
        teacher_width: D_t, features of the teacher.
        bias: whether to add a bias.
    """

    def __init__(self, student_width: int, teacher_width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.student_width = student_width
        same = student_width == teacher_width
        self.linear = None if same else nn.Linear(student_width, teacher_width, bias=bias)

    def forward(self, feature: Tensor) -> Tensor:
        """[B, D_s], [B, N, D_s] or [B, D_s, H, W] -> the same with D_t."""
        check_width(feature, self.student_width)
        if self.linear is None:
            return feature
        with torch.autocast(feature.device.type, enabled=False):
            feature = feature.to(self.linear.weight.dtype)
            if feature.ndim == 4:
                return F.conv2d(feature, rearrange(self.linear.weight, "t s -> t s 1 1"), self.linear.bias)
            projected: Tensor = self.linear(feature)
            return projected


class Projected(nn.Module):
    """A feature loss after a trainable projection of the student's feature; its parameters train with the student's.

    Args:
        loss: f(student_feature, teacher_feature), e.g. `hint_mse`.
        student_width: D_s, features of the student.
        teacher_width: D_t, features of the teacher.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.loss = loss
        self.projection = Projection(student_width, teacher_width)

    def forward(self, student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
        """The loss, a scalar of shape []."""
        return self.loss(self.projection(student_feature), teacher_feature)
