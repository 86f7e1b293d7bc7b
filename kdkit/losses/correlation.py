"""Losses on correlations between the student's and the teacher's probabilities."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._blocks import blocks
from kdkit.losses._checks import soften, to_logit_pair
from kdkit.losses._first_order import first_order
from kdkit.losses.registry import logit_loss
from kdkit.types import to_double


@logit_loss()
def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    eps: float = 1e-8,
) -> Tensor:
    """DIST: Pearson correlation of the probabilities, within each row and within each class over the batch.

    T^2 * (beta * (1 - mean_b r(p_s[b, :], p_t[b, :])) + gamma * (1 - mean_c r(p_s[:, c], p_t[:, c]))), r Pearson's
    correlation and p = softmax(z / T): T^2 applied. A constant row or column has r = 0, and no gradient: with B = 1 the
    second term is the constant gamma * T^2.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        beta: weight of the relation within rows (inter-class).
        gamma: weight of the relation within classes (intra-class).
        temperature: T > 0.
        eps: added to the product of the two norms in r. The published code's 1e-8 mutes classes that are improbable for
            every sample of the batch; 0 is the paper's formula.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher";
        hunto/image_classification_sota lib/models/losses/dist_kd.py.
    """
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    student, teacher = soften(student, temperature), soften(teacher, temperature)
    loss: Tensor = _MeanCorrelation.apply(student, teacher, beta, gamma, eps)
    return loss * temperature**2


class _MeanCorrelation(torch.autograd.Function):
    """beta * (1 - mean_b r(rows)) + gamma * (1 - mean_c r(classes)) of the softmax of logits [B, C].

    `beta` and `gamma` are used in here alone: torch.compile, which makes variables of numbers that differ from one call
    to the next, cannot use one within and outside such a function.

    Written out because automatic differentiation costs several times as much: r's slope follows from intermediate
    values of r.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, beta: float, gamma: float, eps: float) -> Tensor:
        """The value, a scalar of shape []; keeps its gradient for the student [B, C]."""
        of_rows, log_sum_s, log_sum_t, slope, p_student = _of_rows(student, teacher, beta, eps)
        of_classes, in_row = _of_classes(student, teacher, log_sum_s, log_sum_t, gamma, eps, slope)
        for rows, p_s in zip(blocks(student, dim=0), p_student, strict=True):  # from log-probabilities to logits
            slope[rows].addcmul_(p_s, in_row[rows], value=-1)
        ctx.save_for_backward(slope)
        return beta + gamma - (of_rows + of_classes)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient for the student; nothing else takes one."""
        (slope,) = ctx.saved_tensors
        return -grad * slope, None, None, None, None


def _of_rows(
    student: Tensor, teacher: Tensor, beta: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """beta * mean_b r(rows), log-sums of both sides [B, 1] (float64), the gradient for the student's logits, and the
    student's probabilities by block.
    """
    slope, correlations, log_sums, p_student = torch.empty_like(student), [], [], []
    for rows in blocks(student, dim=0):
        p_s, p_t = F.softmax(student[rows], dim=1), F.softmax(teacher[rows], dim=1)
        log_sums.append([_log_sum(student[rows], p_s), _log_sum(teacher[rows], p_t)])
        r, part = _pearson(p_s, p_t, 1, eps)
        slope[rows] = part.addcmul_(p_s, part.sum(dim=1, keepdim=True), value=-1).mul_(beta / student.shape[0])
        correlations.append(r)
        p_student.append(p_s)
    log_sum_s, log_sum_t = (torch.cat(side) for side in zip(*log_sums, strict=True))
    return beta * torch.cat(correlations).mean(), log_sum_s, log_sum_t, slope, p_student


def _of_classes(
    student: Tensor, teacher: Tensor, log_sum_s: Tensor, log_sum_t: Tensor, gamma: float, eps: float, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """gamma * mean_c r(classes); adds its gradient for the log-probabilities to `slope`, and returns its row sums."""
    correlations, in_row = [], torch.zeros_like(slope[:, :1])
    if _is_moderate(student) and _is_moderate(teacher):
        log_sum_s, log_sum_t = log_sum_s.to(student.dtype), log_sum_t.to(student.dtype)
    for classes in blocks(student, dim=1):
        p_s, scale_s = _scaled(student[:, classes], log_sum_s)
        p_t, scale_t = _scaled(teacher[:, classes], log_sum_t)
        r, part = _pearson(p_s, p_t, 0, eps * (-scale_s - scale_t).exp() if eps else 0.0)
        in_row.add_(part.sum(dim=1, keepdim=True), alpha=gamma / student.shape[1])
        slope[:, classes].add_(part, alpha=gamma / student.shape[1])
        correlations.append(r)
    return gamma * torch.cat(correlations, dim=1).mean(), in_row


def _is_moderate(logits: Tensor) -> bool:
    """Whether their own precision holds log-probabilities to 1e-5; False where the check costs more than it saves."""
    if len(blocks(logits, dim=1)) == 1:
        return False
    low, high = torch.aminmax(logits)
    return max(-float(low), float(high)) <= 64


def _log_sum(logits: Tensor, p: Tensor) -> Tensor:
    """logsumexp of rows [R, 1] in float64; their largest probability is at least 1 / C, so that its log is exact."""
    return to_double(logits.amax(dim=1, keepdim=True)) - to_double(p.amax(dim=1, keepdim=True).log())


def _scaled(logits: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
    """The probabilities of some classes, each class scaled to a maximum of 1, and the log of its true maximum [1, C].

    Computed in the precision of `log_sum`.

    r does not change with the scale of a class, but float32 would lose the squares of probabilities below 1e-19. A
    log-probability of -1e4, which float32 rounds to 5e-4, is a class's largest one where every row is sure of others.
    """
    log_p = logits.to(log_sum.dtype, copy=True).sub_(log_sum)
    scale = log_p.amax(dim=0, keepdim=True)
    return log_p.sub_(scale).to(logits.dtype).exp_(), scale.to(logits.dtype)


def _pearson(student: Tensor, teacher: Tensor, dim: int, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """Pearson's correlation r along `dim`, 0 if a side is constant up to rounding, and student * dr/dstudent.

    Overwrites `teacher`.
    """
    mean_a, mean_b = student.mean(dim=dim, keepdim=True), teacher.mean(dim=dim, keepdim=True)
    a, b = student - mean_a, teacher.sub_(mean_b)
    norm_a, norm_b = _norm(a, mean_a, dim), _norm(b, mean_b, dim)
    norms = norm_a * norm_b
    inverse = (norms + eps).reciprocal_().masked_fill_(norms == 0, 0.0)
    r = (a * b).sum(dim=dim, keepdim=True) * inverse
    shrink = r * norm_b * inverse / norm_a.clamp_min(torch.finfo(a.dtype).tiny)
    return r, b.mul_(inverse).addcmul_(a, shrink, value=-1).mul_(student)


def _norm(centred: Tensor, mean: Tensor, dim: int) -> Tensor:
    """L2 norm of values - mean along `dim`; 0 if only rounding is left."""
    norm = torch.linalg.vector_norm(centred, dim=dim, keepdim=True) if dim else centred.square().sum(0, True).sqrt_()
    noise = 16 * torch.finfo(centred.dtype).eps * centred.shape[dim] ** 0.5 * mean.abs()
    return norm.masked_fill_(norm <= noise, 0.0)
