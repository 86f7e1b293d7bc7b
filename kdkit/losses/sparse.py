"""Losses against a teacher of which only the top-k classes are known, without a teacher tensor [B, C].

Dimensions: B batch, C classes, k classes kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.errors import ShapeError
from kdkit.losses._checks import check_logits, soften
from kdkit.losses._rest import binary_kl, split_target
from kdkit.losses._target import Labels
from kdkit.types import LOG_ZERO, SparseLogits, to_compute_dtype


def sparse_kl(student_logits: Tensor, teacher: SparseLogits, temperature: float, *, entropy: bool) -> Tensor:
    """T^2 * batchmean KL(p_t || p_s), or the cross-entropy -sum p_t log p_s where `entropy` is False."""
    log_p = F.log_softmax(soften(_check_pair(student_logits, teacher), temperature), dim=1)
    top, each = teacher.soften(temperature)
    others = teacher.num_classes - top.shape[1]
    kept = log_p.gather(1, teacher.ids)
    rest = log_p.sum(dim=1) - kept.sum(dim=1)
    if entropy:
        per_row = (top.exp() * (top - kept)).sum(dim=1) + each.exp() * (others * each - rest)
    else:
        per_row = -(top.exp() * kept).sum(dim=1) - each.exp() * rest
    return per_row.mean() * temperature**2


def sparse_dkd(
    student_logits: Tensor, teacher: SparseLogits, labels: Labels, *, alpha: float, beta: float, temperature: float
) -> Tensor:
    """The loss `dkd` for index labels [B]."""
    student = soften(_check_pair(student_logits, teacher), temperature)
    index = labels.target.unsqueeze(1)
    _, log_sum, student_odds = split_target(student, labels.target)
    top, each = teacher.soften(temperature)
    is_target = teacher.ids == index
    kept_target = is_target.any(dim=1)
    others = teacher.num_classes - top.shape[1] - (~kept_target).to(top.dtype)  # other non-targets in each row [B]
    top_others = top.masked_fill(is_target, LOG_ZERO)
    log_left = torch.logsumexp(torch.cat([top_others, _log_times(each, others).unsqueeze(1)], dim=1), dim=1)
    teacher_odds = torch.where(kept_target, (top * is_target).sum(dim=1), each) - log_left
    # NCKD = sum over non-targets of q_t (log q_t - z_s), plus the logsumexp of the student's non-targets.
    top_q, each_q = top_others - log_left.unsqueeze(1), each - log_left
    kept = student.gather(1, teacher.ids)
    rest = student.sum(dim=1) - kept.sum(dim=1) - torch.where(kept_target, 0.0, student.gather(1, index).squeeze(1))
    each_q_mass = torch.where(others > 0, each_q, LOG_ZERO).exp()
    nckd = (top_q.exp() * (top_q - kept)).sum(dim=1) + each_q_mass * (others * each_q - rest) + log_sum
    return labels.mean(alpha * binary_kl(student_odds, teacher_odds) + beta * nckd) * temperature**2


def _log_times(log_each: Tensor, count: Tensor | int) -> Tensor:
    """log(count * exp(log_each)), LOG_ZERO if count is 0."""
    counts = torch.as_tensor(count, dtype=log_each.dtype, device=log_each.device)
    return torch.where(counts > 0, log_each + counts.clamp_min(1.0).log(), LOG_ZERO)


def _check_pair(student_logits: Tensor, teacher: SparseLogits) -> Tensor:
    if teacher.ids.ndim != 2 or teacher.ids.shape != teacher.log_probs.shape:
        raise ShapeError(
            "a sparse teacher's ids and log_probs must have one shape [B, k], got "
            f"{list(teacher.ids.shape)} and {list(teacher.log_probs.shape)}"
        )
    check_logits(student_logits, [teacher.ids.shape[0], teacher.num_classes], teacher.log_probs.dtype)
    return to_compute_dtype(student_logits)
