"""Losses on correlations between the student's and the teacher's probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
    within_rows = _pearson(log_s.exp(), log_t.exp(), 1, eps)
    # r does not change with the scale of a class, so each is scaled to a maximum of 1: float32 would lose the squares
    # of probabilities below 1e-19.
    scale_s, scale_t = log_s.detach().amax(dim=0), log_t.amax(dim=0)
    class_eps = eps * (-scale_s - scale_t).exp() if eps else 0.0
    within_classes = _pearson((log_s - scale_s).exp(), (log_t - scale_t).exp(), 0, class_eps)
    return (beta * (1 - within_rows.mean()) + gamma * (1 - within_classes.mean())) * temperature**2


def _pearson(student: Tensor, teacher: Tensor, dim: int, eps: float | Tensor) -> Tensor:
    """Pearson's correlation along `dim`; 0 where a side is constant up to rounding."""
    norm_s, constant_s = _centred_norm(student, dim)
    norm_t, constant_t = _centred_norm(teacher, dim)
    # Centring one factor centres the product; the teacher's takes no gradient.
    product = (student * (teacher - teacher.mean(dim=dim, keepdim=True))).sum(dim=dim)
    return torch.where(constant_s | constant_t, 0.0, product / (norm_s * norm_t + eps))


def _centred_norm(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """L2 norm of values - mean along `dim`, and whether it is only rounding (the norm is then 1)."""
    variance, mean = torch.var_mean(values, dim=dim, correction=0)
    noise = 16 * torch.finfo(values.dtype).eps * mean.abs()
    constant = variance <= noise.square()
    return (torch.where(constant, 1.0, variance) * values.shape[dim]).sqrt(), constant
