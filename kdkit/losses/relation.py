"""Losses on how the samples of a batch relate to each other; the two widths are free.

Dimensions: B batch, D width (everything but the batch, flattened).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from kdkit.losses._checks import full_precision
from kdkit.losses._features import to_row_pair
from kdkit.losses._pairs import Gram, angle_loss, distances
from kdkit.losses.registry import feature_loss


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
    Distances come from the Gram matrix in float64. Samples that are equal to about 3e-7 of their distance from the
    batch's mean have distance 0, and do not count in the mean; the published code counts them as 1e-6.

    Args:
        student_feature: [B, ...], flattened to [B, D_s].
        teacher_feature: [B, ...], flattened to [B, D_t]; no gradient flows into it.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs). Memory O(B^2).

    Source: Park et al. 2019, "Relational Knowledge Distillation" (distance-wise loss);
        HobbitLong/RepDistiller distiller_zoo/RKD.py. Usual weight 25.
    """
    student, teacher = to_row_pair(student_feature, teacher_feature)
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher)).to(student.dtype)


@feature_loss()
@full_precision
def rkd_angle(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Relational distillation by angles: the cosine of the angle at j between i and k, for all triples.

    mean over the B^3 triples of smooth_l1(a_s - a_t), a[i, j, k] = <e_ij, e_kj>, e_ij = (f_i - f_j) / |f_i - f_j|
    (zero for equal vectors). 0 for B = 1. Computed block by block from Gram matrices in float64.

    Args:
        student_feature: [B, ...], flattened to [B, D_s].
        teacher_feature: [B, ...], flattened to [B, D_t]; no gradient flows into it.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs). Memory O(B^2), time O(B^2 D + B^3).

    Source: Park et al. 2019, "Relational Knowledge Distillation" (angle-wise loss);
        HobbitLong/RepDistiller distiller_zoo/RKD.py. Usual weight 50.
    """
    student, teacher = to_row_pair(student_feature, teacher_feature)
    return angle_loss(student, teacher).to(student.dtype)


def _conditional(rows: Tensor) -> Tensor:
    """[B, D] -> probabilities [B, B] in float64, each row over the batch."""
    gram: Tensor = Gram.apply(rows, False)
    squared = gram.diagonal()
    is_zero = squared == 0
    inverse = torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squared).rsqrt())
    kernel = 1 + gram * rearrange(inverse, "i -> i 1") * inverse
    return kernel / kernel.sum(dim=1, keepdim=True)


def _relative_distances(rows: Tensor) -> Tensor:
    """[B, D] -> [B, B] in float64."""
    lengths = distances(Gram.apply(rows, True))
    mean = lengths.sum() / (lengths > 0).sum().clamp_min(1)
    return lengths / torch.where(mean > 0, mean, 1.0)
