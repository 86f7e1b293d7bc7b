"""Multi-level logit distillation: a batch's logits compared by sample, between samples and between classes.

Dimensions: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.errors import ConfigError
from kdkit.losses._checks import check_positive, full_precision, soften, to_logit_pair
from kdkit.losses._known import Known
from kdkit.losses.registry import logit_loss


@logit_loss()
@full_precision
def mlkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """Multi-level logit distillation: instances, batch and classes, at several temperatures.

    sum over T of (alpha * T^2 * mean_b KL(p_t || p_s) + beta / B * |P_s P_s' - P_t P_t'|^2
    + gamma / C * |P_s' P_s - P_t' P_t|^2), with P [B, C] = softmax(z / T) and |.|^2 the sum of squares. No matrix
    [C, C] is made. The published training also takes a weakly and a strongly augmented view of each image in one
    step; this is the loss of one view.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        temperatures: each T > 0; at least one.
        alpha: weight of the divergence of each sample.
        beta: weight of the relations between samples.
        gamma: weight of the relations between classes.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Jin et al. 2023, "Multi-Level Logit Distillation";
        Jin-Ying/Multi-Level-Logit-Distillation mdistiller/distillers/KD_ours.py.
    """
    _check_temperatures(temperatures)
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    fixed, slope = student.detach(), torch.zeros_like(student)
    value = fixed.new_zeros(())
    for temperature in temperatures:
        log_p_student = F.log_softmax(soften(fixed, temperature), dim=1)
        log_p_teacher = F.log_softmax(soften(teacher, temperature), dim=1)
        divergence = F.kl_div(log_p_student, log_p_teacher, reduction="batchmean", log_target=True)
        p_student, p_teacher = log_p_student.exp(), log_p_teacher.exp()
        difference, total = p_student - p_teacher, p_student + p_teacher
        relations, of_p = _relations(difference, total, beta / student.shape[0], gamma / student.shape[1])
        value = value + alpha * temperature**2 * divergence + relations
        of_p = of_p - (of_p * p_student).sum(dim=1, keepdim=True)
        slope = slope + alpha * temperature / student.shape[0] * difference + p_student * of_p / temperature
    known: Tensor = Known.apply(student, value, slope)
    return known


def _check_temperatures(temperatures: object) -> None:
    if not isinstance(temperatures, Sequence) or isinstance(temperatures, str) or not temperatures:
        raise ConfigError(f"temperatures is a list of numbers above 0, got {temperatures!r}: write e.g. [2, 4]")
    for temperature in temperatures:
        check_positive("each of temperatures", temperature)


def _relations(difference: Tensor, total: Tensor, of_batch: float, of_classes: float) -> tuple[Tensor, Tensor]:
    """The weighted squared errors of both Gram matrices, and their slope for the student's probabilities [B, C].

    With D = P_s - P_t and S = P_s + P_t, P_s P_s' - P_t P_t' is the symmetric part of D S', and P_s' P_s - P_t' P_t
    that of D' S. So no difference of nearly equal Gram matrices is formed, and [B, B] matrices are enough for both.
    """
    mixed, of_difference, of_total = difference @ total.T, difference @ difference.T, total @ total.T
    both_ways = (mixed * mixed.T).sum()
    value = of_batch / 2 * (mixed.square().sum() + both_ways)
    value = value + of_classes / 2 * ((of_difference * of_total).sum() + both_ways)
    symmetric = of_batch * (mixed + mixed.T)
    slope = (symmetric + of_classes * (of_difference + mixed.T)) @ total
    return value, slope + (symmetric + of_classes * (mixed + of_total)) @ difference
