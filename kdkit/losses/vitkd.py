"""ViTKD: mimic a vision transformer's first blocks, generate its last one from part of the tokens.

Dimensions: B batch, L low layers, N tokens (only patches, no class token), D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from kdkit.errors import ConfigError, ShapeError
from kdkit.losses.projection import Projection
from kdkit.losses.registry import feature_loss
from kdkit.types import to_compute_dtype


def vitkd(
    mimicked: Tensor,
    teacher_low: Tensor,
    generated: Tensor,
    teacher_high: Tensor,
    mask: Tensor,
    *,
    alpha: float = 3e-5,
    beta: float = 3e-6,
) -> Tensor:
    """The two terms of ViTKD on tokens that are already projected and generated (`ViTKD` does both).

    alpha / B * sum (m - t_low)^2 + beta / (r B) * sum over masked tokens of (g - t_high)^2, r the masked share: sums
    over layers, tokens and width, mean over the batch.

    Args:
        mimicked: the student's first blocks at the teacher's width [B, L, N, D].
        teacher_low: the teacher's first blocks [B, L, N, D]; no gradient flows into it.
        generated: the teacher's last block as generated [B, N, D].
        teacher_high: the teacher's last block [B, N, D]; no gradient flows into it.
        mask: 1 at masked tokens, 0 elsewhere [B, N].
        alpha: weight of mimicking.
        beta: weight of generation.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Yang et al. 2022, "ViTKD: Practical Guidelines for ViT feature knowledge distillation";
        yzd-v/cls_KD mmcls/models/dis_losses/vitkd.py (whose r is the requested share).
    """
    for name, student, teacher in (("low", mimicked, teacher_low), ("high", generated, teacher_high)):
        if student.shape != teacher.shape:
            raise ShapeError(
                f"the student's and the teacher's {name} tokens must have one shape, got "
                f"{list(student.shape)} and {list(teacher.shape)}"
            )
    batch = mimicked.shape[0]
    of_low = (to_compute_dtype(mimicked) - to_compute_dtype(teacher_low.detach())).square().sum() / batch
    difference = to_compute_dtype(generated) - to_compute_dtype(teacher_high.detach())
    masked = mask.to(difference.dtype)
    of_high = (difference.square() * rearrange(masked, "b n -> b n 1")).sum() / batch
    return alpha * of_low + beta * of_high / masked.mean().clamp_min(torch.finfo(masked.dtype).tiny)


@feature_loss("vitkd", taps="several", projects=True, aligns="tokens")
class ViTKD(nn.Module):
    """`vitkd` with its parameters: projections, mask token and generation; they train with the student's.

    Args:
        student_widths: D of each of the student's features: the L first blocks, then the last one.
        teacher_widths: D of each of the teacher's features, all of them equal.
        alpha: weight of mimicking the first blocks.
        beta: weight of generating the last block.
        mask_ratio: share of the tokens that are masked, drawn for every sample and step; in (0, 1].

    Raises:
        ConfigError: the lists do not pair, have fewer than two widths, or the teacher's widths differ.
    """

    def __init__(
        self,
        student_widths: Sequence[int],
        teacher_widths: Sequence[int],
        *,
        alpha: float = 3e-5,
        beta: float = 3e-6,
        mask_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio <= 1:
            raise ConfigError(f"mask_ratio must be in (0, 1], got {mask_ratio}")
        widths = f"{list(student_widths)} of the student and {list(teacher_widths)} of the teacher"
        if len(student_widths) != len(teacher_widths) or len(student_widths) < 2:
            raise ConfigError(f"vitkd compares one or more first blocks and the last one, got the widths {widths}")
        if len(set(teacher_widths)) > 1:
            raise ConfigError(f"vitkd takes blocks of one width from the teacher, got {widths}")
        teacher_width = teacher_widths[0]
        self.alpha, self.beta, self.mask_ratio = alpha, beta, mask_ratio
        self.low_projections = nn.ModuleList(Projection(width, teacher_width) for width in student_widths[:-1])
        self.high_projection = Projection(student_widths[-1], teacher_width)
        self.mask_token = nn.Parameter(torch.zeros(teacher_width))
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_width, teacher_width, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_width, teacher_width, kernel_size=3, padding=1),
        )

    def forward(
        self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar of shape [].

        Args:
            student_features: the L first blocks, then the last one, each [B, N, D_s] with N a square, no class token.
            teacher_features: the same of the teacher [B, N, D_t].
            mask: 1 at the tokens to mask [B, N]; drawn when None.
        """
        layers = len(self.low_projections)
        if len(student_features) != layers + 1 or len(teacher_features) != layers + 1:
            raise ShapeError(
                f"vitkd needs {layers} low features and a high one of each side, got {len(student_features)} of the "
                f"student and {len(teacher_features)} of the teacher"
            )
        *low, high = student_features
        mimicked = torch.stack([project(f) for project, f in zip(self.low_projections, low, strict=True)], dim=1)
        mask = self.draw_mask(high) if mask is None else mask
        return vitkd(
            mimicked,
            torch.stack(list(teacher_features[:-1]), dim=1),
            self.generate(high, mask),
            teacher_features[-1],
            mask,
            alpha=self.alpha,
            beta=self.beta,
        )

    def draw_mask(self, feature: Tensor) -> Tensor:
        """1 at exactly ceil(mask_ratio * N) random tokens of every sample, 0 elsewhere: [B, N]."""
        batch, tokens = feature.shape[:2]
        kept = int(tokens * (1 - self.mask_ratio))
        rank = torch.rand(batch, tokens, device=feature.device).argsort(dim=1).argsort(dim=1)
        return (rank >= kept).to(self.mask_token.dtype)

    def generate(self, feature: Tensor, mask: Tensor) -> Tensor:
        """The teacher's last block [B, N, D_t] from the student's [B, N, D_s], its masked tokens hidden."""
        side = math.isqrt(feature.shape[1])
        if side * side != feature.shape[1]:
            raise ShapeError(f"vitkd needs a square grid of tokens without the class token, got {list(feature.shape)}")
        with torch.autocast(feature.device.type, enabled=False):
            tokens = self.high_projection(feature).to(self.mask_token.dtype)
            shown = torch.where(rearrange(mask, "b n -> b n 1") > 0, self.mask_token, tokens)
            grid: Tensor = self.generation(rearrange(shown, "b (h w) d -> b d h w", h=side))
            return rearrange(grid, "b d h w -> b (h w) d")
