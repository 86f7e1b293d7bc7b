"""Losses on correlations between the student's and the teacher's probabilities."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdkit.losses._checks import soften, to_logit_pair


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    eps: float = 0.0,
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
        eps: added to the product of the two norms in r. 0 is the paper's formula; 1e-8, as in the published code, mutes
            classes that no sample of the batch finds probable.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", eq. 8 to 10;
        hunto/image_classification_sota lib/models/losses/dist_kd.py.
    """
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    log_s = F.log_softmax(soften(student, temperature), dim=1)
    log_t = F.log_softmax(soften(teacher, temperature), dim=1)
    correlation: Tensor = _MeanCorrelation.apply(log_s, log_t, beta, gamma, eps)
    return (beta + gamma - correlation) * temperature**2


class _MeanCorrelation(torch.autograd.Function):
    """beta * mean_b r(rows) + gamma * mean_c r(classes) of probabilities given by their logarithms [B, C].

    Written out because automatic differentiation costs four times as much: r's slope follows from what r itself needs.
    """

    @staticmethod
    def forward(ctx: Any, log_s: Tensor, log_t: Tensor, beta: float, gamma: float, eps: float) -> Tensor:
        """The value, a scalar of shape []; keeps its gradient for log_s [B, C]."""
        rows, slope = _pearson(log_s.exp(), log_t.exp(), 1, eps)
        # r does not change with the scale of a class, so each is scaled to a maximum of 1: float32 would lose the
        # squares of probabilities below 1e-19.
        scale_s, scale_t = log_s.amax(dim=0, keepdim=True), log_t.amax(dim=0, keepdim=True)
        class_eps = eps * (-scale_s - scale_t).exp() if eps else 0.0
        classes, class_slope = _pearson((log_s - scale_s).exp_(), (log_t - scale_t).exp_(), 0, class_eps)
        slope.mul_(beta / rows.numel()).add_(class_slope, alpha=gamma / classes.numel())
        ctx.save_for_backward(slope)
        return beta * rows.mean() + gamma * classes.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient for log_s; nothing else takes one."""
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None, None, None


def _pearson(student: Tensor, teacher: Tensor, dim: int, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """Pearson's correlation r along `dim`, 0 where a side is constant up to rounding, and student * dr/dstudent.

    Overwrites `teacher`.
    """
    mean_a, mean_b = student.mean(dim=dim, keepdim=True), teacher.mean(dim=dim, keepdim=True)
    a, b = student - mean_a, teacher.sub_(mean_b)
    norm_a, norm_b = _norm(a, mean_a, dim), _norm(b, mean_b, dim)
    inverse = torch.where((norm_a > 0) & (norm_b > 0), 1 / (norm_a * norm_b + eps), 0.0)
    r = (a * b).sum(dim=dim, keepdim=True) * inverse
    slope = b.mul_(inverse).sub_(a.mul_(r * norm_b * inverse / torch.where(norm_a > 0, norm_a, 1.0)))
    return r, slope.mul_(student)


def _norm(centred: Tensor, mean: Tensor, dim: int) -> Tensor:
    """L2 norm of values - mean along `dim`; 0 where only rounding is left."""
    norm = torch.linalg.vector_norm(centred, dim=dim, keepdim=True) if dim else centred.square().sum(0, True).sqrt_()
    noise = 16 * torch.finfo(centred.dtype).eps * centred.shape[dim] ** 0.5 * mean.abs()
    return torch.where(norm > noise, norm, 0.0)
