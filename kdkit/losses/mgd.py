"""MGD: generate the teacher's map from the student's, a part of which is hidden.

Dimensions: B batch, D width, H W height and width.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kdkit.errors import ConfigError, ShapeError
from kdkit.losses._features import check_same_width, resize_map, to_feature_pair
from kdkit.losses.projection import Projection
from kdkit.losses.registry import feature_loss

Hidden = Literal["channels", "positions"]
"""What a mask hides: channels, as published for classification, or positions, as for detection and segmentation."""


def mgd(generated: Tensor, teacher_feature: Tensor, *, alpha: float = 7e-5) -> Tensor:
    """Squared error of a map that is already generated (`MGD` does that too).

    alpha / B * sum (g - f_t)^2: a sum over width and positions, mean over the batch.

    Args:
        generated: the teacher's map as generated [B, D, H, W].
        teacher_feature: the teacher's map [B, D, H, W]; no gradient flows into it.
        alpha: weight.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Yang et al. 2022, "Masked Generative Distillation";
        yzd-v/MGD cls/mmcls/distillation/losses/mgd.py.
    """
    student, teacher = to_feature_pair(generated, teacher_feature)
    check_same_width(student, teacher)
    if student.shape != teacher.shape:
        raise ShapeError(
            f"generated and teacher_feature differ in size: {list(student.shape)} and {list(teacher.shape)}"
        )
    return alpha / len(student) * (student - teacher).square().sum()


@feature_loss("mgd", projects=True, aligns="maps")
class MGD(nn.Module):
    """`mgd` with its parameters: projection and generation; they train with the student's.

    Args:
        student_width: D_s of the student's map.
        teacher_width: D_t of the teacher's map.
        alpha: weight.
        mask_ratio: probability that a channel or a position is hidden, drawn for every sample and step; in [0, 1).
        mask: what is hidden, "channels" or "positions".

    Raises:
        ConfigError: an option is not one of these.
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        *,
        alpha: float = 7e-5,
        mask_ratio: float = 0.15,
        mask: Hidden = "channels",
    ) -> None:
        super().__init__()
        if not 0 <= mask_ratio < 1:
            raise ConfigError(f"mask_ratio must be in [0, 1), got {mask_ratio}")
        if mask not in get_args(Hidden):
            raise ConfigError(f"mask must be one of {', '.join(get_args(Hidden))}, got {mask!r}")
        self.alpha, self.mask_ratio, self.hides_channels = alpha, mask_ratio, mask == "channels"
        self.projection = Projection(student_width, teacher_width)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_width, teacher_width, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_width, teacher_width, kernel_size=3, padding=1),
        )

    def forward(self, student_feature: Tensor, teacher_feature: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss, a scalar of shape [].

        Args:
            student_feature: map [B, D_s, h, w], interpolated bilinearly to the teacher's size.
            teacher_feature: map [B, D_t, H, W].
            mask: 1 at what is hidden, [B, D_t, 1, 1] or [B, 1, H, W]; drawn when None.
        """
        for feature in (student_feature, teacher_feature):
            if feature.ndim != 4:
                raise ShapeError(f"mgd takes maps [B, D, H, W], got {list(feature.shape)}: use other taps")
        with torch.autocast(student_feature.device.type, enabled=False):
            projected = resize_map(self.projection(student_feature), teacher_feature)
            projected = projected.to(next(self.generation.parameters()).dtype)
            mask = self.draw_mask(projected) if mask is None else mask
            return mgd(self.generation(projected * (1 - mask)), teacher_feature, alpha=self.alpha)

    def draw_mask(self, feature: Tensor) -> Tensor:
        """1 at random channels [B, D, 1, 1] or positions [B, 1, H, W] of a map [B, D, H, W], 0 elsewhere."""
        batch, width, *size = feature.shape
        shape = (batch, width, 1, 1) if self.hides_channels else (batch, 1, *size)
        return (torch.rand(shape, device=feature.device) < self.mask_ratio).to(feature.dtype)
