"""A teacher that said only its top-k classes, and the losses that use it without a [B, C] teacher tensor.

Dimensions: B batch, C classes, k classes kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.errors import ConfigError, ShapeError
from kdkit.losses._checks import check_logits, soften, to_compute_dtype
from kdkit.losses._rest import MASKED, binary_kl, split_target

_NOTHING_LEFT = -1e4  # log of a rest mass of 0: small beyond meaning, yet float32 still tells log C from it


@dataclass(frozen=True)
class SparseLogProbs:
    """Log-probabilities of the top-k classes; what they leave of the mass is spread evenly over the other classes.

    Stands in for `teacher_logits` in kl, soft_ce and dkd.

    Attributes:
        ids: the kept classes [B, k] int64, distinct within a row.
        log_probs: their log-probabilities at temperature 1 [B, k].
        num_classes: C.
        log_rest: log of the mass of all other classes together [B], or None for 1 - sum exp(log_probs). That
            difference is rounding noise for a confident row, which a temperature above 1 makes large: pass it if known.
    """

    ids: Tensor
    log_probs: Tensor
    num_classes: int
    log_rest: Tensor | None = None

    @classmethod
    def from_logits(cls, logits: Tensor, k: int) -> SparseLogProbs:
        """The top-k of logits [B, C]."""
        if not 1 <= k <= logits.shape[1]:
            raise ConfigError(f"k must be in 1..{logits.shape[1]} for logits {list(logits.shape)}, got {k}")
        log_p = F.log_softmax(to_compute_dtype(logits.detach()), dim=1)
        log_probs, ids = log_p.topk(k, dim=1)
        return cls(ids, log_probs, logits.shape[1], torch.logsumexp(log_p.scatter(1, ids, MASKED), dim=1))

    def to_dense(self) -> Tensor:
        """The same distribution as log-probabilities [B, C]."""
        top, each = self.soften(1.0)
        return each.unsqueeze(1).repeat(1, self.num_classes).scatter(1, self.ids, top)

    def soften(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities at temperature T: of the kept classes [B, k], and of each other class [B]."""
        top = to_compute_dtype(self.log_probs.detach())
        others = self.num_classes - top.shape[1]
        if self.log_rest is None:
            rest = -torch.expm1(top.double().logsumexp(dim=1)).clamp_max(0.0)
            log_rest = rest.log().to(top.dtype)
        else:
            log_rest = to_compute_dtype(self.log_rest.detach())
        each = log_rest.clamp_min(_NOTHING_LEFT) - math.log(max(others, 1))
        top, each = top / temperature, each / temperature
        total = torch.logsumexp(torch.cat([top, _log_times(each, others).unsqueeze(1)], dim=1), dim=1)
        return top - total.unsqueeze(1), each - total


def sparse_kl(student_logits: Tensor, teacher: SparseLogProbs, temperature: float, *, entropy: bool) -> Tensor:
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
    student_logits: Tensor, teacher: SparseLogProbs, target: Tensor, *, alpha: float, beta: float, temperature: float
) -> Tensor:
    """The loss `dkd` for index labels [B]."""
    student = soften(_check_pair(student_logits, teacher), temperature)
    index = target.unsqueeze(1)
    _, log_sum, student_odds = split_target(student, target)
    top, each = teacher.soften(temperature)
    is_target = teacher.ids == index
    kept_target = is_target.any(dim=1)
    others = teacher.num_classes - top.shape[1] - (~kept_target).to(top.dtype)  # other non-targets in each row [B]
    top_others = top.masked_fill(is_target, MASKED)
    log_left = torch.logsumexp(torch.cat([top_others, _log_times(each, others).unsqueeze(1)], dim=1), dim=1)
    teacher_odds = torch.where(kept_target, (top * is_target).sum(dim=1), each) - log_left
    # NCKD = sum over non-targets of q_t (log q_t - z_s), plus the logsumexp of the student's non-targets.
    top_q, each_q = top_others - log_left.unsqueeze(1), each - log_left
    kept = student.gather(1, teacher.ids)
    rest = student.sum(dim=1) - kept.sum(dim=1) - torch.where(kept_target, 0.0, student.gather(1, index).squeeze(1))
    each_q_mass = torch.where(others > 0, each_q, MASKED).exp()
    nckd = (top_q.exp() * (top_q - kept)).sum(dim=1) + each_q_mass * (others * each_q - rest) + log_sum
    return (alpha * binary_kl(student_odds, teacher_odds) + beta * nckd).mean() * temperature**2


def _log_times(log_each: Tensor, count: Tensor | int) -> Tensor:
    """log(count * exp(log_each)), MASKED where count is 0."""
    counts = torch.as_tensor(count, dtype=log_each.dtype, device=log_each.device)
    return torch.where(counts > 0, log_each + counts.clamp_min(1.0).log(), MASKED)


def _check_pair(student_logits: Tensor, teacher: SparseLogProbs) -> Tensor:
    if teacher.ids.ndim != 2 or teacher.ids.shape != teacher.log_probs.shape:
        raise ShapeError(
            "a sparse teacher's ids and log_probs must have one shape [B, k], got "
            f"{list(teacher.ids.shape)} and {list(teacher.log_probs.shape)}"
        )
    check_logits(student_logits, [teacher.ids.shape[0], teacher.num_classes], teacher.log_probs.dtype)
    return to_compute_dtype(student_logits)
