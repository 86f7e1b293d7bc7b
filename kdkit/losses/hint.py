"""FitNets hints: the student's feature itself against the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._features import check_same_width, resize_map, to_feature_pair, width_dim
from kdkit.losses.registry import feature_loss


@feature_loss(projects=True)
def hint_mse(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Mean squared error of one tap.

    mean (f_s - f_t)^2 over all elements.

    Args:
        student_feature: [B, D], [B, N, D] or [B, D, H, W]; where widths differ, project it first (`Projected`). A map
            of another size is interpolated bilinearly to the teacher's.
        teacher_feature: of the same kind and width; no gradient flows into it.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets" (there a sum and a factor 1/2);
        megvii-research/mdistiller mdistiller/distillers/FitNet.py. Usual weight 100.
    """
    student, teacher = to_feature_pair(student_feature, teacher_feature)
    check_same_width(student, teacher)
    return F.mse_loss(resize_map(student, teacher), teacher)


@feature_loss(projects=True)
def hint_cosine(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """One minus the cosine between the features of one tap, at every position.

    mean (1 - <f_s, f_t> / (|f_s| |f_t|)) over batch and positions, the vectors along the width D.

    Args:
        student_feature: [B, D], [B, N, D] or [B, D, H, W]; where widths differ, project it first (`Projected`). A map
            of another size is interpolated bilinearly to the teacher's.
        teacher_feature: of the same kind and width; no gradient flows into it.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs); 1 if a vector is zero.

    Source: the hint of Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", with the cosine distance
        instead of the squared error. Usual weight 1.
    """
    student, teacher = to_feature_pair(student_feature, teacher_feature)
    check_same_width(student, teacher)
    student, dim = resize_map(student, teacher), width_dim(teacher)
    norms = torch.linalg.vector_norm(student, dim=dim) * torch.linalg.vector_norm(teacher, dim=dim)
    cosine = (student * teacher).sum(dim=dim) / torch.where(norms > 0, norms, 1.0)
    return 1 - cosine.mean()
