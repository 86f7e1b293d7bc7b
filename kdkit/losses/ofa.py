"""The one-for-all loss: the teacher's distribution with its target enhanced."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._checks import check_positive, soften, to_logit_pair
from kdkit.losses._target import SoftLabels, resolve_target
from kdkit.losses.registry import logit_loss


@logit_loss(needs_target=True)
def ofa(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    eps: float = 1.0,
    temperature: float = 1.0,
    soft_labels: SoftLabels = "expected",
) -> Tensor:
    """Cross-entropy against the teacher's distribution with the target class enhanced.

    -mean_b sum_j ((p_t[j] + 1[j = y])^eps - 1[j = y]) log p_s[j], with p = softmax(z / T): mean over the labelled
    samples, no T^2.
    eps = 1 is soft_ce without T^2; above 1 the target counts more and the others less. Its minimum is not 0.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        target: index labels [B], or soft labels [B, C] under the policy `soft_labels`. Required. A sample without a
            label (-1, or a row of zeros) takes no part.
        eps: the modulating exponent, above 0; the paper's gamma, 1 to 1.5 in its experiments.
        temperature: T > 0.
        soft_labels: for [B, C] targets: 'expected' the label-weighted mean over y, 'argmax' the largest label as y, or
            'error'.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Hao et al. 2023, "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
        Distillation" (adaptive target enhancement); Hao840/OFAKD distillers/ofa.py.
    """
    check_positive("eps", eps)
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    labels = resolve_target("ofa", student, target, soft_labels)
    log_p_student = F.log_softmax(soften(student, temperature), dim=1)
    log_p_teacher = F.log_softmax(soften(teacher, temperature), dim=1)
    plain = (eps * log_p_teacher).exp()
    if labels.target.ndim == 2:
        coefficient = plain + labels.target * (_enhanced(log_p_teacher, eps) - plain)
    else:
        column = labels.target.unsqueeze(1)
        coefficient = plain.scatter(1, column, _enhanced(log_p_teacher.gather(1, column), eps))
    return -labels.mean((coefficient * log_p_student).sum(dim=1))


def _enhanced(log_p: Tensor, eps: float) -> Tensor:
    """(1 + p)^eps - 1."""
    return torch.expm1(eps * torch.log1p(log_p.exp()))
