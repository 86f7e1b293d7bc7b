"""Divergences that weigh by the student's distribution too: the reverse Kullback-Leibler and the Jensen-Shannon one."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.errors import ConfigError
from kdkit.losses._checks import soften, to_logit_pair
from kdkit.losses._first_order import first_order
from kdkit.losses.registry import logit_loss


@logit_loss()
def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence KL(student || teacher), both softened by the temperature: it seeks modes.

    T^2 * mean_b sum_c p_s log(p_s / p_t), with p = softmax(z / T): reduction "batchmean", T^2 applied.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        temperature: T > 0.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Gu et al. 2024, "MiniLLM: Knowledge Distillation of Large Language Models", equation 1;
        huggingface/trl trl/trainer/gkd_trainer.py (beta=1).
    """
    student, log_p_student, log_p_teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    of_p = log_p_student - log_p_teacher
    return _mean_over_rows(student, _divergence(log_p_student, log_p_teacher), of_p) * temperature**2


@logit_loss()
def js(student_logits: Tensor, teacher_logits: Tensor, *, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Generalised Jensen-Shannon divergence: both distributions against their mixture.

    T^2 * mean_b (beta * KL(p_t || m) + (1 - beta) * KL(p_s || m)), with m = beta * p_t + (1 - beta) * p_s and p =
    softmax(z / T): reduction "batchmean", T^2 applied. At most log 2 * T^2 for beta = 0.5. Divided by beta it tends to
    kl as beta goes to 0, and divided by 1 - beta to reverse_kl as beta goes to 1.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        beta: the teacher's share of the mixture, between 0 and 1.
        temperature: T > 0.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Agarwal et al. 2024, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        equation 1; huggingface/trl trl/trainer/gkd_trainer.py, whose ends 0 and 1 are kl and reverse_kl.
    """
    _check_share(beta)
    student, log_p_student, log_p_teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    mixture = torch.logaddexp(log_p_teacher + math.log(beta), log_p_student + math.log1p(-beta))
    rows = beta * _divergence(log_p_teacher, mixture) + (1 - beta) * _divergence(log_p_student, mixture)
    of_p = (1 - beta) * (log_p_student - mixture)  # the slopes by way of the mixture cancel
    return _mean_over_rows(student, rows, of_p) * temperature**2


def _check_share(beta: object) -> None:
    if not (isinstance(beta, Real) and 0 < float(beta) < 1):
        raise ConfigError(f"beta must be between 0 and 1, got {beta!r}; the ends are the losses kl and reverse_kl")


def _log_probabilities(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The student's softened logits, and the log-probabilities of both sides without gradient."""
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    student, teacher = soften(student, temperature), soften(teacher, temperature)
    return student, F.log_softmax(student.detach(), dim=1), F.log_softmax(teacher, dim=1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row [B]."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def _mean_over_rows(student: Tensor, rows: Tensor, of_p: Tensor) -> Tensor:
    mean: Tensor = _MeanOverRows.apply(student, rows, of_p)
    return mean


class _MeanOverRows(torch.autograd.Function):
    """The mean of rows [B], whose slope for the probabilities softmax(student) is `of_p` [B, C] up to a constant a row.

    Written out because automatic differentiation is left with rounding where the student is sure of one class: its
    gradient there is a difference of numbers that are equal to the last bit.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, rows: Tensor, of_p: Tensor) -> Tensor:
        """The value, a scalar; keeps its gradient for the student [B, C]."""
        p = F.softmax(student, dim=1)
        # Relative to the most probable class, whose share of the sum is then 0 and not nearly everything.
        relative = of_p - of_p.gather(1, student.argmax(dim=1, keepdim=True))
        ctx.save_for_backward((relative - (p * relative).sum(dim=1, keepdim=True)).mul_(p))
        return rows.mean()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient for the student; nothing else takes one."""
        (slope,) = ctx.saved_tensors
        return slope * (grad / len(slope)), None, None
