"""Losses on how the samples of a batch relate to each other; the two widths are free.

Dimensions: B batch, D width (everything but the batch, flattened).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdkit.losses._blocks import blocks
from kdkit.losses._checks import full_precision
from kdkit.losses._features import to_row_pair, unit
from kdkit.losses.registry import feature_loss
from kdkit.types import to_double


@feature_loss()
@full_precision
def similarity(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Similarity-preserving loss: the batch's Gram matrices, row by row.

    |G_s - G_t|_F^2 / B^2, G = f f^T [B, B] with rows scaled to L2 norm 1. 0 for B = 1.

    Args:
        student_feature: [B, ...], flattened to [B, D_s].
        teacher_feature: [B, ...], flattened to [B, D_t]; no gradient flows into it.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs). Memory O(B^2).

    Source: Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation";
        HobbitLong/RepDistiller distiller_zoo/SP.py. Usual weight 3000.
    """
    student, teacher = to_row_pair(student_feature, teacher_feature)
    return F.mse_loss(F.normalize(student @ student.T, dim=1), F.normalize(teacher @ teacher.T, dim=1))


@feature_loss()
@full_precision
def pkt(student_feature: Tensor, teacher_feature: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Probabilistic knowledge transfer: each sample's distribution over the batch, by cosine similarity.

    mean over the B x B matrix of p_t log(p_t / p_s), p[i, j] = K[i, j] / sum_j K[i, j], K = (1 + cos(f_i, f_j)) / 2.
    0 for B = 1. Computed in float64 throughout: the value is of second order in the difference of the two sides, and
    for nearly parallel features below float32's rounding of a probability.

    Args:
        student_feature: [B, ...], flattened to [B, D_s].
        teacher_feature: [B, ...], flattened to [B, D_t]; no gradient flows into it.
        eps: the minimum probability inside the logarithm, which opposite vectors would send to 0.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs). Memory O(B^2).

    Source: Passalis and Tefas 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer";
        HobbitLong/RepDistiller distiller_zoo/PKT.py (which adds eps where this clamps). Usual weight 30000.
    """
    student, teacher = to_row_pair(student_feature, teacher_feature)
    p_student, p_teacher = _conditional(student), _conditional(teacher)
    divergence = (p_teacher * (p_teacher.clamp_min(eps).log() - p_student.clamp_min(eps).log())).mean()
    return divergence.to(student.dtype)


@feature_loss()
@full_precision
def rkd_distance(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Relational distillation by distances: the pairwise distances in units of their mean.

    mean over the B^2 pairs of smooth_l1(d_s - d_t), d[i, j] = |f_i - f_j| / (mean of the positive ones). 0 for B = 1.

    Args:
        student_feature: [B, ...], flattened to [B, D_s].
        teacher_feature: [B, ...], flattened to [B, D_t]; no gradient flows into it.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs). Memory O(B^2).

    Source: Park et al. 2019, "Relational Knowledge Distillation" (distance-wise loss);
        HobbitLong/RepDistiller distiller_zoo/RKD.py. Usual weight 25.
    """
    student, teacher = to_row_pair(student_feature, teacher_feature)
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


@feature_loss()
@full_precision
def rkd_angle(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Relational distillation by angles: the cosine of the angle at j between i and k, for all triples.

    mean over the B^3 triples of smooth_l1(a_s - a_t), a[i, j, k] = <e_ij, e_kj>, e_ij = (f_i - f_j) / |f_i - f_j|
    (zero for equal vectors). 0 for B = 1.

    Args:
        student_feature: [B, ...], flattened to [B, D_s].
        teacher_feature: [B, ...], flattened to [B, D_t]; no gradient flows into it.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs). Memory O(B^2 D + B^3): pool the feature first.

    Source: Park et al. 2019, "Relational Knowledge Distillation" (angle-wise loss);
        HobbitLong/RepDistiller distiller_zoo/RKD.py. Usual weight 50.
    """
    student, teacher = to_row_pair(student_feature, teacher_feature)
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


def _conditional(rows: Tensor) -> Tensor:
    """[B, D] -> probabilities [B, B] in float64, each row over the batch."""
    gram: Tensor = _Gram.apply(rows)
    squared = gram.diagonal()
    is_zero = squared == 0
    inverse = torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squared).rsqrt())
    kernel = 1 + gram * rearrange(inverse, "i -> i 1") * inverse
    return kernel / kernel.sum(dim=1, keepdim=True)


class _Gram(torch.autograd.Function):
    """rows @ rows.T in float64 from rows [B, D], without a copy of all of them in float64 on a CPU."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """The products [B, B]; keeps the rows."""
        ctx.save_for_backward(rows)
        parts = (to_double(rows[:, part]) for part in blocks(rows, dim=1))
        return functools.reduce(torch.add, (part @ part.T for part in parts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient for the rows [B, D]."""
        (rows,) = ctx.saved_tensors
        both, slope = grad + grad.T, torch.empty_like(rows)
        for part in blocks(rows, dim=1):
            slope[:, part] = both @ to_double(rows[:, part])
        return slope


def _relative_distances(rows: Tensor) -> Tensor:
    """[B, D] -> [B, B]."""
    # Differences, not the Gram matrix: in float32 that one loses the distance of close vectors.
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _angles(rows: Tensor) -> Tensor:
    """[B, D] -> cosines [B, B, B], the vertex first."""
    edges = unit(rearrange(rows, "i d -> 1 i d") - rearrange(rows, "j d -> j 1 d"))
    return torch.bmm(edges, rearrange(edges, "j k d -> j d k"))
