"""Losses of the Kullback-Leibler family."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._checks import to_logit_pair


def kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the student from the teacher, both softened by the temperature.

    T^2 * mean_b sum_c p_t log(p_t / p_s), with p = softmax(z / T): reduction "batchmean", T^2 applied.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; log-probabilities from a cache serve as well. No gradient flows into them.
        temperature: T > 0; 1 for strong students, 4 in the classic CIFAR tables.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    log_p_student = F.log_softmax(student / temperature, dim=1)
    log_p_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_p_student, log_p_teacher, reduction="batchmean", log_target=True) * temperature**2
