"""ReviewKD: the student's features, fused from deep to shallow, against each of the teacher's.

Dimensions: B batch, D width, H W height and width; K stages, from shallow to deep.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from kdkit.errors import ConfigError, ShapeError
from kdkit.losses._features import check_same_width, to_feature_pair
from kdkit.losses._norm import BatchNorm
from kdkit.losses.registry import feature_loss

_LEVELS = (4, 2, 1)  # heights and widths of the pooled maps; each that is used weighs half of the one before


def review(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Hierarchical context loss on features that are already fused (`ReviewKD` does both).

    sum over stages of (mse(f_s, f_t) + sum_l w_l mse(pool_l f_s, pool_l f_t)) / (1 + sum_l w_l): pooled adaptively to
    l x l for those l of 4, 2, 1 that are below the height, with w = 1/2, 1/4, 1/8 in that order; each mse an element
    mean.

    Args:
        student_features: K maps [B, D, H, W], or [B, D] read as 1 x 1 maps.
        teacher_features: K of the same shapes; no gradient flows into them.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Chen et al. 2021, "Distilling Knowledge via Knowledge Review" (hierarchical context loss);
        megvii-research/mdistiller mdistiller/distillers/ReviewKD.py.
    """
    if len(student_features) != len(teacher_features) or not student_features:
        raise ShapeError(
            "student_features and teacher_features must list the same stages, got "
            f"{len(student_features)} and {len(teacher_features)}"
        )
    stages = [_context(s, t) for s, t in zip(student_features, teacher_features, strict=True)]
    return torch.stack(stages).sum()


def _context(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """The loss of one stage."""
    student, teacher = to_feature_pair(_as_map(student_feature), _as_map(teacher_feature))
    check_same_width(student, teacher)
    if student.shape != teacher.shape:
        raise ShapeError(
            f"student_feature and teacher_feature differ in size: {list(student.shape)} and {list(teacher.shape)}"
        )
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for level in _LEVELS:
        if level < student.shape[2]:
            weight /= 2
            pooled = F.adaptive_avg_pool2d(student, level), F.adaptive_avg_pool2d(teacher, level)
            loss, total = loss + weight * F.mse_loss(*pooled), total + weight
    return loss / total


@feature_loss("review", taps="several", projects=True, aligns="maps")
class ReviewKD(nn.Module):
    """`review` after its trainable fusion; the parameters train with the student's.

    Args:
        student_widths: D of the student's K stages, shallow to deep.
        teacher_widths: D of the teacher's K stages.
        mid_width: width inside the fusion; min(512, the deepest student width) when None.
    """

    def __init__(
        self, student_widths: Sequence[int], teacher_widths: Sequence[int], *, mid_width: int | None = None
    ) -> None:
        super().__init__()
        if len(student_widths) != len(teacher_widths) or not student_widths:
            raise ConfigError(
                f"student_widths and teacher_widths must list the same stages, got {len(student_widths)} "
                f"and {len(teacher_widths)}"
            )
        mid = min(512, student_widths[-1]) if mid_width is None else mid_width
        last = len(student_widths) - 1
        pairs = zip(student_widths, teacher_widths, strict=True)
        self.fusions = nn.ModuleList(_Fusion(s, mid, t, deepest=i == last) for i, (s, t) in enumerate(pairs))

    def forward(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
        """The loss, a scalar of shape [], from K features [B, D, H, W] or [B, D] of each side, shallow to deep."""
        return review(self.fuse(student_features, teacher_features), teacher_features)

    def fuse(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> list[Tensor]:
        """Returns the student's K features, each fused with the deeper ones, in the teacher's shapes."""
        if not len(student_features) == len(teacher_features) == len(self.fusions):
            raise ShapeError(
                f"review was built for {len(self.fusions)} stages, got {len(student_features)} student_features "
                f"and {len(teacher_features)} teacher_features"
            )
        fused: list[Tensor] = []
        deeper: Tensor | None = None
        with torch.autocast(student_features[0].device.type, enabled=False):
            for i in reversed(range(len(self.fusions))):
                size = _as_map(teacher_features[i]).shape[2:]
                out, deeper = self.fusions[i](_as_map(student_features[i]), deeper, size)
                fused.insert(0, out)
        return fused


class _Fusion(nn.Module):
    """One attention-based fusion: the stage's own feature and the deeper residual, weighed at every position."""

    def __init__(self, student_width: int, mid_width: int, teacher_width: int, *, deepest: bool) -> None:
        super().__init__()
        self.enter = nn.Conv2d(student_width, mid_width, kernel_size=1, bias=False)
        self.enter_norm = BatchNorm(mid_width)
        self.leave = nn.Conv2d(mid_width, teacher_width, kernel_size=3, padding=1, bias=False)
        self.leave_norm = BatchNorm(teacher_width)
        self.attention = None if deepest else nn.Conv2d(2 * mid_width, 2, kernel_size=1)
        nn.init.kaiming_uniform_(self.enter.weight, a=1)
        nn.init.kaiming_uniform_(self.leave.weight, a=1)

    def forward(self, feature: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """[B, D_s, h, w] and the deeper residual -> [B, D_t, H, W] of `size`, and the residual for the next stage."""
        mixed: Tensor = self.enter_norm(self.enter(feature.to(self.enter.weight.dtype)))
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, size=list(mixed.shape[2:]), mode="nearest")
            weights = torch.sigmoid(self.attention(torch.cat([mixed, deeper], dim=1)))
            mixed = mixed * weights[:, :1] + deeper * weights[:, 1:]
        if mixed.shape[2:] != size:
            mixed = F.interpolate(mixed, size=list(size), mode="nearest")
        return self.leave_norm(self.leave(mixed)), mixed


def _as_map(feature: Tensor) -> Tensor:
    """[B, D] as a 1 x 1 map; a map unchanged."""
    if feature.ndim not in (2, 4):
        raise ShapeError(f"review takes features [B, D, H, W] or [B, D], got {list(feature.shape)}")
    return rearrange(feature, "b d -> b d 1 1") if feature.ndim == 2 else feature
