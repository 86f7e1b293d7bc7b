"""Losses that treat the labelled class apart from the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._checks import check_classes, check_positive, soften, to_logit_pair
from kdkit.losses._expected import Expected
from kdkit.losses._rest import binary_kl, split_target
from kdkit.losses._target import Labels, SoftLabels, resolve_target
from kdkit.losses.registry import logit_loss
from kdkit.losses.sparse import sparse_dkd
from kdkit.types import SparseLogits


@logit_loss(needs_target=True)
def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    target: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    soft_labels: SoftLabels = "expected",
) -> Tensor:
    """Decoupled knowledge distillation: the target's share and the order of the others, weighted apart.

    T^2 * mean_b (alpha * TCKD + beta * NCKD): reduction "batchmean" over the labelled samples, T^2 applied. TCKD is the
    KL divergence of the binary distributions (p[y], 1 - p[y]); NCKD that of the softmax over the other classes. NCKD of
    2 classes is 0.

    Args:
        student_logits: [B, C], C >= 2.
        teacher_logits: [B, C], or sparse (then with index labels); no gradient flows into them.
        target: index labels [B], or soft labels [B, C] under the policy `soft_labels`. Required. A sample without a
            label (-1, or a row of zeros) takes no part.
        alpha: weight of TCKD.
        beta: weight of NCKD; 8 for CIFAR at T = 4, 0.5 for ImageNet at T = 1.
        temperature: T > 0.
        soft_labels: for [B, C] targets: 'expected' the label-weighted mean over y, 'argmax' the largest label as y, or
            'error'.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation";
        megvii-research/mdistiller mdistiller/distillers/DKD.py.
    """
    check_classes("dkd", student_logits)
    check_positive("temperature", temperature)
    if isinstance(teacher_logits, SparseLogits):
        policy: SoftLabels = "error" if soft_labels == "expected" else soft_labels
        labels = resolve_target("dkd with a sparse teacher", student_logits, target, policy)
        return sparse_dkd(student_logits, teacher_logits, labels, alpha=alpha, beta=beta, temperature=temperature)
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    labels = resolve_target("dkd", student, target, soft_labels)
    student, teacher = soften(student, temperature), soften(teacher, temperature)
    if labels.target.ndim == 2:
        expected: Tensor = Expected.apply(student, teacher, _weighted(labels), alpha, beta, True)
        return expected * temperature**2
    _, student_log_sum, student_odds = split_target(student, labels.target)
    others, teacher_log_sum, teacher_odds = split_target(teacher, labels.target)
    # log(q_t / q_s) is a difference of logits, less one of logsumexps; q_t is 0 at the target.
    nckd = (F.softmax(others, dim=1) * (teacher - student)).sum(dim=1) - (teacher_log_sum - student_log_sum)
    return labels.mean(alpha * binary_kl(student_odds, teacher_odds) + beta * nckd) * temperature**2


@logit_loss(needs_target=True)
def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
    soft_labels: SoftLabels = "expected",
) -> Tensor:
    """Normalised knowledge distillation: cross-entropies of the target and of the renormalised others.

    mean_b [-p_t[y] log p_s[y] - gamma * T^2 * sum_{j != y} q_t[j] log q_s[j]]: mean over the labelled samples. p is the
    softmax at T = 1; q the softmax at T over the classes other than y. T^2 applies only to the second term. Its minimum
    is not 0.

    Args:
        student_logits: [B, C], C >= 2.
        teacher_logits: [B, C]; no gradient flows into them.
        target: index labels [B], or soft labels [B, C] under the policy `soft_labels`. Required. A sample without a
            label (-1, or a row of zeros) takes no part.
        gamma: weight of the second term.
        temperature: T > 0, of the second term.
        soft_labels: for [B, C] targets: 'expected' the label-weighted mean over y, 'argmax' the largest label as y, or
            'error'.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation";
        yzd-v/cls_KD mmcls/models/dis_losses/nkd.py.
    """
    check_classes("nkd", student_logits)
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    labels = resolve_target("nkd", student, target, soft_labels)
    if labels.target.ndim == 2:
        return _expected_nkd(student, teacher, _weighted(labels), gamma, temperature)
    target = labels.target
    soft_student, soft_teacher = soften(student, temperature), soften(teacher, temperature)
    _, log_sum, student_odds = split_target(soft_student, target)
    others, _, teacher_odds = split_target(soft_teacher, target)
    of_others = log_sum - (F.softmax(others, dim=1) * soft_student).sum(dim=1)
    if soft_student is not student:  # the target's own term is taken at T = 1
        student_odds, teacher_odds = split_target(student, target)[2], split_target(teacher, target)[2]
    of_target = -torch.sigmoid(teacher_odds) * F.logsigmoid(student_odds)
    return labels.mean(of_target + gamma * temperature**2 * of_others)


def _weighted(labels: Labels) -> Tensor:
    """Soft labels [B, C] whose mean over all B samples is that over the labelled ones."""
    return labels.target * (labels.weight * len(labels.weight)).unsqueeze(1)


def _expected_nkd(student: Tensor, teacher: Tensor, weights: Tensor, gamma: float, temperature: float) -> Tensor:
    """mean_b sum_c weights[c] * nkd with c as the target."""
    soft_student, soft_teacher = soften(student, temperature), soften(teacher, temperature)
    if soft_student is student:
        both: Tensor = Expected.apply(student, teacher, weights, 1.0, gamma, False)
        return both
    of_target = -(weights * F.softmax(teacher, dim=1) * F.log_softmax(student, dim=1)).sum(dim=1).mean()
    of_others: Tensor = Expected.apply(soft_student, soft_teacher, weights, 0.0, gamma, False)
    return of_target + temperature**2 * of_others
