"""SRRL: the student's feature where the teacher's classifier reads it.

Dimensions: B batch, D width, H W height and width, C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from kdkit.errors import ConfigError, ShapeError
from kdkit.losses._features import check_same_width, check_width, to_feature_pair
from kdkit.losses._norm import BatchNorm
from kdkit.losses.registry import feature_loss


def srrl(connected: Tensor, teacher_feature: Tensor, head_weight: Tensor) -> Tensor:
    """Squared error of the classifier's input, and of the logits that the classifier makes of it.

    mean (f_s - f_t)^2 over B and D + mean (W (f_s - f_t))^2 over B and C: the classifier's bias cancels.

    Args:
        connected: the student's feature at the teacher's width [B, D] (`SRRL` makes it).
        teacher_feature: the input of the teacher's classifier [B, D]; no gradient flows into it.
        head_weight: weight W of the teacher's classifier [C, D]; no gradient flows into it.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Yang et al. 2021, "Knowledge Distillation via Softmax Regression Representation Learning";
        jingyang2017/KD_SRRL train_imagenet_distillation.py. Usual weight 1.
    """
    student, teacher = to_feature_pair(connected, teacher_feature)
    check_same_width(student, teacher)
    difference = student - teacher
    with torch.autocast(student.device.type, enabled=False):
        of_logits = F.linear(difference, head_weight.detach().to(difference.dtype))
    return difference.square().mean() + of_logits.square().mean()


@feature_loss("srrl", projects=True, needs_head=True)
class SRRL(nn.Module):
    """`srrl` after its trainable connector, a 1 x 1 convolution with a batch norm and a ReLU.

    Args:
        student_width: D_s of the student's feature, its last map or its pooled feature.
        teacher_width: D of the input of the teacher's classifier.
        head_weight: weight of the teacher's classifier [C, D], which stays as it is.
        relu: whether the connector ends in a ReLU, as published; False for a teacher whose pooled feature may be
            negative, such as a transformer.

    Raises:
        ConfigError: the classifier does not take the teacher's feature.
    """

    def __init__(self, student_width: int, teacher_width: int, head_weight: Tensor, *, relu: bool = True) -> None:
        super().__init__()
        if head_weight.ndim != 2 or head_weight.shape[1] != teacher_width:
            raise ConfigError(
                f"srrl compares the input of the teacher's classifier, which is {list(head_weight.shape)}, got a "
                f"feature of width {teacher_width}: take the tap 'pooled' of the teacher"
            )
        self.relu = relu
        self.connect = nn.Conv2d(student_width, teacher_width, kernel_size=1, bias=False)
        self.norm = BatchNorm(teacher_width)
        nn.init.normal_(self.connect.weight, std=math.sqrt(2 / teacher_width))
        # Not persistent, because it is the teacher's: a checkpoint holds what is trained.
        self.register_buffer("head_weight", head_weight.detach().clone(), persistent=False)

    head_weight: Tensor

    def forward(self, student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
        """The loss, a scalar of shape [].

        Args:
            student_feature: [B, D_s, H, W], whose mean over the positions is compared, or [B, D_s].
            teacher_feature: [B, D], or [B, D, H, W] whose mean is the classifier's input.
        """
        student = _as_map(student_feature)
        check_width(student, self.connect.in_channels)
        with torch.autocast(student.device.type, enabled=False):
            connected = self.norm(self.connect(student.to(self.connect.weight.dtype)))
            connected = F.relu(connected) if self.relu else connected
        return srrl(_pooled(connected), _pooled(_as_map(teacher_feature)), self.head_weight)


def _as_map(feature: Tensor) -> Tensor:
    """[B, D] as a 1 x 1 map; a map unchanged."""
    if feature.ndim not in (2, 4):
        raise ShapeError(f"srrl takes features [B, D, H, W] or [B, D], got {list(feature.shape)}: use other taps")
    return rearrange(feature, "b d -> b d 1 1") if feature.ndim == 2 else feature


def _pooled(feature: Tensor) -> Tensor:
    return reduce(feature, "b d h w -> b d", "mean")
