"""Attention transfer: matches the positions where a feature is large."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from kdkit.errors import ShapeError
from kdkit.losses._features import check_same_tokens, to_feature_pair
from kdkit.losses.registry import feature_loss


@feature_loss()
def attention(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Squared difference of the normalised attention maps of one tap.

    mean (a_s - a_t)^2 over batch and positions, a = flatten(mean over D of f^2), scaled to L2 norm 1 in each sample.

    Args:
        student_feature: [B, D_s, H, W] or [B, N, D_s]; widths are free. Of two map sizes the larger is pooled
            adaptively to the smaller, before squaring.
        teacher_feature: [B, D_t, H, W] or [B, N, D_t]; no gradient flows into it.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", with the mean of squares for the
        mapping and an element mean for the norm; HobbitLong/RepDistiller distiller_zoo/AT.py. Usual weight 1000.
    """
    student, teacher = to_feature_pair(student_feature, teacher_feature)
    if student.ndim == 2:
        raise ShapeError(
            "attention needs positions, [B, N, D] or [B, D, H, W]: student_feature and teacher_feature are "
            f"{list(student.shape)} and {list(teacher.shape)}"
        )
    check_same_tokens(student, teacher)
    if student.ndim == 4:
        size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
        student, teacher = _pool(student, size), _pool(teacher, size)
    return F.mse_loss(_attention_map(student), _attention_map(teacher))


def _pool(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if tuple(feature.shape[2:]) == size else F.adaptive_avg_pool2d(feature, size)


def _attention_map(feature: Tensor) -> Tensor:
    """[B, D, H, W] or [B, N, D] -> unit rows [B, H * W] or [B, N]."""
    if feature.ndim == 3:
        return F.normalize(reduce(feature.square(), "b n d -> b n", "mean"), dim=1)
    return F.normalize(rearrange(reduce(feature.square(), "b d h w -> b h w", "mean"), "b h w -> b (h w)"), dim=1)
