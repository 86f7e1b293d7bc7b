"""Distillation of a multi-label teacher: one Bernoulli distribution per class instead of one over all classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._checks import soften, to_logit_pair
from kdkit.losses.registry import logit_loss


@logit_loss(multi_label=True)
def sigmoid_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence between the teacher's and the student's Bernoulli distribution of each class.

    T^2 * mean_b sum_c [p_t log(p_t / p_s) + (1 - p_t) log((1 - p_t) / (1 - p_s))], with p = sigmoid(z / T): reduction
    "batchmean", T^2 applied.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C], not normalised over the classes; no gradient flows into them. Infinite where the teacher
            is certain: 0 log 0 counts as 0.
        temperature: T > 0.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Yang et al. 2023, "Multi-Label Knowledge Distillation" (multi-label logits distillation);
        penghui-yang/L2D.
    """
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    student, teacher = soften(student, temperature), soften(teacher, temperature)
    p_teacher = teacher.sigmoid()
    present = F.logsigmoid(teacher) - F.logsigmoid(student)
    lacking = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    present, lacking = present.masked_fill(p_teacher == 0, 0), lacking.masked_fill(p_teacher == 1, 0)
    divergence = p_teacher * present + (1 - p_teacher) * lacking
    return divergence.sum(dim=1).mean() * temperature**2
