"""SimKD's student: a backbone and a projector before the classifier of its teacher.

Dimensions: B batch, C classes, D width, H W height and width, N tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from timm.utils import unwrap_model
from torch import Tensor, nn

from kdkit.errors import ConfigError, ShapeError
from kdkit.teachers.head import weight_of_head
from kdkit.teachers.model_config import model_config
from kdkit.teachers.tap import TOKENS, available_taps, forward_with_taps, tap_width
from kdkit.teachers.teacher import Teacher
from kdkit.teachers.timm_model import create_model


class ReusedHead(nn.Module):
    """A student whose features are projected to the width of its teacher's classifier, which it keeps as it is.

    What it learns from is a loss on features, such as hint_mse: between its module `projector` and the teacher's last
    map, as published, or between its module `pooled` and the teacher's tap of that name.

    Args:
        backbone: a timm model, whose classifier is removed; its last feature is taken as a map, tokens as a square one.
        width: D_t, width of the input of the teacher's classifier.
        num_classes: C.
        factor: width of the teacher over that inside the projector.
        relu: whether the projector ends in a ReLU, as published; False for a teacher whose features may be negative.

    Raises:
        ConfigError: the backbone is not a timm model, or a number is below 1.

    Source: Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier"; DefangChen/SimKD
        models/util.py.
    """

    head_weight: Tensor
    head_bias: Tensor

    def __init__(
        self, backbone: nn.Module, width: int, num_classes: int, *, factor: int = 2, relu: bool = True
    ) -> None:
        super().__init__()
        if TOKENS not in available_taps(backbone):
            raise ConfigError(f"the backbone is a timm model, got {type(backbone).__name__}")
        for name, value in {"width": width, "num_classes": num_classes, "factor": factor}.items():
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} must be a whole number from 1, got {value!r}")
        backbone.reset_classifier(0)  # type: ignore[operator]
        middle = max(1, width // factor)
        self.num_classes = num_classes
        self.pretrained_cfg = {**model_config(backbone), "num_classes": num_classes}
        self.backbone = backbone
        self.projector = nn.Sequential(
            *_layer(tap_width(backbone, TOKENS), middle, 1),
            nn.ReLU(),
            *_layer(middle, middle, 3),
            nn.ReLU(),
            *_layer(middle, width, 1),
            nn.ReLU() if relu else nn.Identity(),
        )
        self.pooled = nn.Identity()  # a tap
        self.register_buffer("head_weight", torch.zeros(num_classes, width))
        self.register_buffer("head_bias", torch.zeros(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], square if the backbone has tokens -> logits [B, C]."""
        tokens = forward_with_taps(self.backbone, images, [TOKENS])[1][TOKENS]
        side = math.isqrt(tokens.shape[1])
        if side * side != tokens.shape[1]:
            raise ShapeError(f"a student with a reused head takes square images, got {list(images.shape)}")
        features = self.projector(rearrange(tokens, "b (h w) d -> b d h w", h=side))
        return F.linear(self.pooled(reduce(features, "b d h w -> b d", "mean")), self.head_weight, self.head_bias)

    @torch.no_grad()
    def take_head_of(self, teacher: Teacher | None) -> None:
        """Takes the weight and the bias of the teacher's classifier, in the order of the teacher's classes.

        Raises:
            ConfigError: there is no live teacher, or its classifier is not a linear layer of the student's shape.
        """
        if teacher is None:
            raise ConfigError(
                "a student that reuses its teacher's classifier needs a teacher with weights of its own: give "
                "--teacher NAME, beside a cache with --cache-weights 1 0"
            )
        weight = weight_of_head(teacher, "a student with a reused head")
        if weight.shape != self.head_weight.shape:
            remedy = f"give student_options the width {weight.shape[1]}"
            if len(weight) != self.num_classes:
                remedy = "a student learns the teacher's classes, so both need those of the data"
            raise ConfigError(
                f"the classifier of the teacher {teacher.name!r} is {list(weight.shape)}, the student is made for "
                f"{list(self.head_weight.shape)}: {remedy}"
            )
        self.head_weight.copy_(weight)
        plain: Any = unwrap_model(teacher.model)
        bias = plain.get_classifier().bias
        if bias is not None:  # else it stays 0
            self.head_bias.copy_(teacher.map_classes(bias.unsqueeze(0))[0])


def create(
    backbone: str,
    width: int,
    num_classes: int,
    *,
    pretrained: bool = False,
    factor: int = 2,
    relu: bool = True,
    **options: Any,
) -> ReusedHead:
    """Returns a ReusedHead of timm's model called `backbone`, made with `options`, for `--student` of a command."""
    model = create_model(backbone, "student", pretrained=pretrained, num_classes=0, **options)
    return ReusedHead(model, width, num_classes, factor=factor, relu=relu)


def _layer(before: int, after: int, kernel_size: int) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2, bias=False)
    return convolution, nn.BatchNorm2d(after)
