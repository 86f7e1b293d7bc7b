"""Losses on how the samples of a batch relate to each other; the two widths are free.

Dimensions: B batch, D width (everything but the batch, flattened).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from kdkit.losses._checks import full_precision
from kdkit.losses._features import to_row_pair, unit


@full_precision
def similarity(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Similarity-preserving loss: the batch's Gram matrices, row by row.

    |G_s - G_t|_F^2 / B^2, G = f f^T [B, B] with rows scaled to L2 norm 1. 0 for B = 1.

    Args:
        student_feature: [B, ...], flattened to [B, D_s].
        teacher_feature: [B, ...], flattened to [B, D_t]; no gradient flows into it.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs). Memory O(B^2).

    Source: Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation", section 3.1;
        HobbitLong/RepDistiller distiller_zoo/SP.py. Usual weight 3000.
    """
    student, teacher = to_row_pair(student_feature, teacher_feature)
    return F.mse_loss(F.normalize(student @ student.T, dim=1), F.normalize(teacher @ teacher.T, dim=1))


@full_precision
def pkt(student_feature: Tensor, teacher_feature: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Probabilistic knowledge transfer: each sample's distribution over the batch, by cosine similarity.

    mean over the B x B matrix of p_t log(p_t / p_s), p[i, j] = K[i, j] / sum_j K[i, j], K = (1 + cos(f_i, f_j)) / 2.
    0 for B = 1.

    Args:
        student_feature: [B, ...], flattened to [B, D_s].
        teacher_feature: [B, ...], flattened to [B, D_t]; no gradient flows into it.
        eps: the least probability inside the logarithm, which opposite vectors would send to 0.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs). Memory O(B^2).

    Source: Passalis and Tefas 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer", section 3;
        HobbitLong/RepDistiller distiller_zoo/PKT.py (which adds eps where this clamps). Usual weight 30000.
    """
    student, teacher = to_row_pair(student_feature, teacher_feature)
    p_student, p_teacher = _conditional(student), _conditional(teacher)
    return (p_teacher * (p_teacher.clamp_min(eps).log() - p_student.clamp_min(eps).log())).mean()


@full_precision
def rkd_distance(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Relational distillation by distances: the pairwise distances in units of their mean.

    mean over the N^2 pairs of smooth_l1(d_s - d_t), d[i, j] = |f_i - f_j| / (mean of the positive ones). 0 for B = 1.

    Args:
        student_feature: [B, ...], flattened to [B, D_s].
        teacher_feature: [B, ...], flattened to [B, D_t]; no gradient flows into it.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs). Memory O(B^2).

    Source: Park et al. 2019, "Relational Knowledge Distillation", section 3.2.1;
        HobbitLong/RepDistiller distiller_zoo/RKD.py. Usual weight 25.
    """
    student, teacher = to_row_pair(student_feature, teacher_feature)
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


@full_precision
def rkd_angle(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Relational distillation by angles: the cosine of the angle at j between i and k, for all triples.

    mean over the N^3 triples of smooth_l1(a_s - a_t), a[i, j, k] = <e_ij, e_kj>, e_ij = (f_i - f_j) / |f_i - f_j|
    (zero for equal vectors). 0 for B = 1.

    Args:
        student_feature: [B, ...], flattened to [B, D_s].
        teacher_feature: [B, ...], flattened to [B, D_t]; no gradient flows into it.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs). Memory O(B^2 D + B^3): pool the feature first.

    Source: Park et al. 2019, "Relational Knowledge Distillation", section 3.2.2;
        HobbitLong/RepDistiller distiller_zoo/RKD.py. Usual weight 50.
    """
    student, teacher = to_row_pair(student_feature, teacher_feature)
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


def _conditional(rows: Tensor) -> Tensor:
    """[B, D] -> probabilities [B, B], each row over the batch."""
    directions = unit(rows)
    kernel = (1 + directions @ directions.T) / 2
    return kernel / kernel.sum(dim=1, keepdim=True)


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
