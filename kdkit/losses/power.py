"""Transformed teacher matching: a power of the teacher's distribution, no temperature on the student."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._checks import check_positive, to_logit_pair
from kdkit.losses.registry import logit_loss


@logit_loss()
def ttm(student_logits: Tensor, teacher_logits: Tensor, *, power: float = 0.1) -> Tensor:
    """KL(teacher^power || student), with the power of the teacher's distribution renormalised.

    mean_b sum_c w log(w / p_s), with p = softmax(z) and w = p_t^power / sum p_t^power = softmax(power * z_t): reduction
    "batchmean", no T^2.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        power: exponent above 0, the paper's gamma; 1 / T of a temperature on only the teacher.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Zheng and Yang 2024, "Knowledge Distillation Based on Transformed Teacher Matching", section
        "Transformed Teacher Matching"; zkxufo/TTM distiller_zoo/ttm.py.
    """
    check_positive("power", power)
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    log_w = F.log_softmax(power * teacher, dim=1)
    return F.kl_div(F.log_softmax(student, dim=1), log_w, reduction="batchmean", log_target=True)


@logit_loss()
def wttm(student_logits: Tensor, teacher_logits: Tensor, *, power: float = 0.1) -> Tensor:
    """ttm with each sample weighted by its power sum, so that flat teacher rows count more.

    mean_b (sum_c p_t^power) * (sum_c w log(w / p_s)), w as in ttm: mean over the batch, no T^2. The weight is between
    1 (a certain teacher) and C^(1 - power) (a flat one), for power <= 1.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        power: exponent above 0, the paper's gamma; 0.1 to 0.2 in its tables.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Zheng and Yang 2024, "Knowledge Distillation Based on Transformed Teacher Matching", section
        "Sample-adaptive Matching to the Transformed Teacher"; zkxufo/TTM distiller_zoo/wttm.py.
    """
    check_positive("power", power)
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    powered = power * F.log_softmax(teacher, dim=1)
    log_weight = torch.logsumexp(powered, dim=1, keepdim=True)
    divergence = F.kl_div(F.log_softmax(student, dim=1), powered - log_weight, reduction="none", log_target=True)
    return (log_weight.exp().squeeze(1) * divergence.sum(dim=1)).mean()
