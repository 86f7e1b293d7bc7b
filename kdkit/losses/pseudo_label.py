"""Losses that use the teacher's prediction as the label."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._checks import to_logit_pair
from kdkit.losses.registry import logit_loss


@logit_loss()
def bce(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Binary cross-entropy of every class against the teacher's softmax probability of it.

    -mean_{b,c} [p_t log sigmoid(z_s) + (1 - p_t) log(1 - sigmoid(z_s))], with p_t = softmax(z_t): reduction "mean" over
    all B * C elements, no temperature, no T^2.

    Args:
        student_logits: [B, C], read as C independent binary classifications.
        teacher_logits: [B, C]; no gradient flows into them.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs). Its minimum is not 0.

    Source: Hao et al. 2023, "Revisit the Power of Vanilla Knowledge Distillation";
        Hao840/OFAKD distillers/kd.py.
    """
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    return F.binary_cross_entropy_with_logits(student, F.softmax(teacher, dim=1))


@logit_loss()
def hard(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy against the class that the teacher finds most probable.

    -mean_b log softmax(z_s)[argmax z_t]: mean over the batch, no temperature, no T^2. Of tied classes one is taken.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Touvron et al. 2021, "Training data-efficient image transformers" (hard-label distillation);
        facebookresearch/deit losses.py.
    """
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    return F.cross_entropy(student, teacher.argmax(dim=1))
