"""Losses that treat the labelled class and the others apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._checks import check_classes, check_positive, soften, to_logit_pair
from kdkit.losses._rest import LeaveOneOut, WeightedLogSum, binary_kl, split_target
from kdkit.losses._target import SoftLabels, resolve_target
from kdkit.losses.sparse import SparseLogProbs, sparse_dkd


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogProbs,
    target: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    soft_labels: SoftLabels = "expected",
) -> Tensor:
    """Decoupled knowledge distillation: the target's share and the order of the others, weighted apart.

    T^2 * mean_b (alpha * TCKD + beta * NCKD): reduction "batchmean", T^2 applied. TCKD is the KL divergence of the
    binary distributions (p[y], 1 - p[y]); NCKD that of the softmax over the other classes. NCKD of 2 classes is 0.

    Args:
        student_logits: [B, C], C >= 2.
        teacher_logits: [B, C], or sparse (then with index labels); no gradient flows into them.
        target: index labels [B], or soft labels [B, C] under the policy `soft_labels`. Required.
        alpha: weight of TCKD.
        beta: weight of NCKD; 8 for CIFAR at T = 4, 0.5 for ImageNet at T = 1.
        temperature: T > 0.
        soft_labels: for [B, C] targets: 'expected' the label-weighted mean over y, 'argmax' the largest label as y, or
            'error'.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation", eq. 7;
        megvii-research/mdistiller mdistiller/distillers/DKD.py.
    """
    check_classes("dkd", student_logits)
    check_positive("temperature", temperature)
    if isinstance(teacher_logits, SparseLogProbs):
        policy: SoftLabels = "error" if soft_labels == "expected" else soft_labels
        labels = resolve_target("dkd with a sparse teacher", student_logits, target, policy)
        return sparse_dkd(student_logits, teacher_logits, labels, alpha=alpha, beta=beta, temperature=temperature)
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    labels = resolve_target("dkd", student, target, soft_labels)
    student, teacher = soften(student, temperature), soften(teacher, temperature)
    if labels.ndim == 2:
        return _expected_dkd(student, teacher, labels, alpha, beta) * temperature**2
    student_odds, student_rest = split_target(student, labels)
    teacher_odds, teacher_rest = split_target(teacher, labels)
    tckd = binary_kl(student_odds, teacher_odds).mean()
    nckd = F.kl_div(student_rest, teacher_rest, reduction="batchmean", log_target=True)
    return (alpha * tckd + beta * nckd) * temperature**2


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

    mean_b [-p_t[y] log p_s[y] - gamma * T^2 * sum_{j != y} q_t[j] log q_s[j]]: mean over the batch. p is the softmax
    at T = 1; q the softmax at T over the classes other than y. T^2 applies to the second term alone. Its minimum is
    not 0.

    Args:
        student_logits: [B, C], C >= 2.
        teacher_logits: [B, C]; no gradient flows into them.
        target: index labels [B], or soft labels [B, C] under the policy `soft_labels`. Required.
        gamma: weight of the second term.
        temperature: T > 0, of the second term.
        soft_labels: for [B, C] targets: 'expected' the label-weighted mean over y, 'argmax' the largest label as y, or
            'error'.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation", section 3;
        yzd-v/cls_KD mmcls/models/dis_losses/nkd.py.
    """
    check_classes("nkd", student_logits)
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    labels = resolve_target("nkd", student, target, soft_labels)
    if labels.ndim == 2:
        return _expected_nkd(student, teacher, labels, gamma, temperature)
    log_p_target, log_q = _target_and_rest(student, labels, temperature)
    teacher_log_p_target, teacher_log_q = _target_and_rest(teacher, labels, temperature)
    of_target = -(teacher_log_p_target.exp() * log_p_target).mean()
    of_others = -(teacher_log_q.exp() * log_q).sum(dim=1).mean()
    return of_target + gamma * temperature**2 * of_others


def _target_and_rest(logits: Tensor, index: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log p[y] at T = 1 [B], and log q at T [B, C]."""
    odds, log_q = split_target(logits, index)
    softened = soften(logits, temperature)
    if softened is not logits:
        _, log_q = split_target(softened, index)
    return F.logsigmoid(odds), log_q


def _expected_dkd(student: Tensor, teacher: Tensor, weights: Tensor, alpha: float, beta: float) -> Tensor:
    """mean_b sum_c weights[c] * (alpha * TCKD_c + beta * NCKD_c), with every class in turn as the target.

    Every term is a teacher's probability times a difference of log-probabilities, and each of those is a logit, or the
    logsumexp without c, less the logsumexp of all. So the sum over c collapses to one coefficient for each.
    """
    without = LeaveOneOut(teacher)
    of_logit = beta * without.mixture(weights) + alpha * weights * without.p
    of_rest = weights * (alpha * (1 - without.p) - beta)
    of_all = alpha * weights.sum(dim=1)
    student_rest: Tensor = WeightedLogSum.apply(student, of_rest)
    rest = (of_rest * without.log_sum).sum(dim=1) - student_rest
    total = of_all * (torch.logsumexp(teacher, dim=1) - torch.logsumexp(student, dim=1))
    return ((of_logit * (teacher - student)).sum(dim=1) + rest - total).mean()


def _expected_nkd(student: Tensor, teacher: Tensor, weights: Tensor, gamma: float, temperature: float) -> Tensor:
    """mean_b sum_c weights[c] * nkd with c as the target, collapsed like `_expected_dkd`."""
    of_target = -(weights * F.softmax(teacher, dim=1) * F.log_softmax(student, dim=1)).sum(dim=1)
    student, teacher = soften(student, temperature), soften(teacher, temperature)
    student_rest: Tensor = WeightedLogSum.apply(student, weights)
    of_others = student_rest - (LeaveOneOut(teacher).mixture(weights) * student).sum(dim=1)
    return (of_target + gamma * temperature**2 * of_others).mean()
