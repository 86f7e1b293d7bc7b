"""Decoupled losses with every class in turn as the target, weighted by soft labels, in closed form.

log(1 - p_c) is never taken from a rounded p_c, and every slope is written out: it follows from intermediate values of
the loss. Dimensions: B batch, C classes, R rows of one block.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._blocks import blocks
from kdkit.losses._first_order import first_order
from kdkit.types import LOG_ZERO


class Expected(torch.autograd.Function):
    """mean over rows of sum over c of weights_c * (alpha * target term + beta * rest term), c the target: a scalar.

    With `divergence` the terms are the KL divergences TCKD and NCKD of dkd; without, the cross-entropies of nkd at
    T = 1: -p_t[c] log p_s[c], and that of the classes other than c. A row counts by the sum of its weights.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, weights: Tensor, alpha: float, beta: float, divergence: bool
    ) -> Tensor:
        """The value, from three tensors [B, C]; keeps its gradient for the student [B, C]."""
        parts = blocks(student, dim=0)
        if len(parts) == 1:
            total, slope = _expected_rows(student, teacher, weights, alpha, beta, divergence)
        else:
            totals, slope = [], torch.empty_like(student)
            for rows in parts:
                value, slope[rows] = _expected_rows(
                    student[rows], teacher[rows], weights[rows], alpha, beta, divergence
                )
                totals.append(value)
            total = torch.stack(totals).sum()
        ctx.save_for_backward(slope)
        return total / student.shape[0]

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient for the student; nothing else takes one."""
        (slope,) = ctx.saved_tensors
        return slope * (grad / slope.shape[0]), None, None, None, None, None


def _expected_rows(
    student: Tensor, teacher: Tensor, weights: Tensor, alpha: float, beta: float, divergence: bool
) -> tuple[Tensor, Tensor]:
    """The sum of `Expected` over rows [R, C], and its gradient for the student [R, C].

    The teacher's coefficients multiply log p_c or log(1 - p_c) of the student: of_p and of_rest [R, C] add them up.
    """
    s, t = _Rows(student), _Rows(teacher)
    of_target = t.p().mul_(weights).mul_(alpha)
    of_p, of_rest = t.mixture(weights).mul_(beta).add_(of_target), weights * -beta
    if divergence:  # the rest term of TCKD: alpha * weights * (1 - p_t)
        of_rest.add_(weights, alpha=alpha).sub_(of_target)
        of_rest.scatter_(1, t.top, weights.gather(1, t.top) * (alpha * t.mass - beta))
    slope = s.slope(of_p, of_rest).neg_()
    log_p, log_rest = s.log_p.neg_(), s.complement.log_().scatter_(1, s.top, s.log_mass).neg_()
    if divergence:
        log_p.add_(t.log_p)
        log_rest.add_(t.complement.log_().scatter_(1, t.top, t.log_mass))
    return log_p.mul_(of_p).addcmul_(log_rest, of_rest).sum(), slope


class _Rows:
    """Rows of logits [R, C], told apart in each row's most probable class, its "top", and the softmax of the others.

    Attributes:
        top: index of one largest logit [R, 1].
        log_p: log-probabilities [R, C].
        others: softmax over the classes other than the top [R, C]; 0 at the top.
        mass: the probability of all others together [R, 1]; p is mass * others but at the top.
        top_p: 1 - mass [R, 1].
        log_mass: log(mass) [R, 1], finite where mass is 0.
        complement: 1 - p [R, C], but 1 at the top; the others have p <= 1/2, where 1 - p is exact to rounding.
    """

    def __init__(self, logits: Tensor) -> None:
        largest, self.top = logits.max(dim=1, keepdim=True)
        shifted = (logits - largest).scatter_(1, self.top, LOG_ZERO)
        self.others = F.softmax(shifted, dim=1)
        # Their largest probability is at least 1 / C: its logarithm gives their logsumexp without another pass.
        log_odds = shifted.amax(dim=1, keepdim=True) - self.others.amax(dim=1, keepdim=True).log()
        log_sum = F.softplus(log_odds)
        self.mass, self.top_p, self.log_mass = torch.sigmoid(log_odds), torch.sigmoid(-log_odds), log_odds - log_sum
        self.log_p = shifted.scatter_(1, self.top, 0.0).sub_(log_sum)
        self.complement = (self.others * -self.mass).add_(1.0)

    def p(self) -> Tensor:
        """The probabilities [R, C]."""
        return (self.others * self.mass).scatter_(1, self.top, self.top_p)

    def mixture(self, weights: Tensor) -> Tensor:
        """sum over c of weights_c * softmax(z_j, j != c): [R, C] from weights [R, C]."""
        # Without c, p_j becomes p_j / (1 - p_c): safe for every c but the top one, which follows by itself.
        share = (weights / self.complement).scatter_(1, self.top, 0.0)
        total = share.sum(dim=1, keepdim=True)
        of_top = weights.gather(1, self.top)
        mixed = share.sub_(total).mul_(-self.mass).add_(of_top).mul_(self.others)
        return mixed.scatter_(1, self.top, self.top_p * total)

    def slope(self, of_p: Tensor, of_rest: Tensor) -> Tensor:
        """The gradient of sum over c of of_p_c * log p_c + of_rest_c * log(1 - p_c) for the logits: [R, C]."""
        # d log(1 - p_c) / dz_j is (1 / (1 - p_c) - 1) * p_j for j != c and -p_c for j = c; at the top, others_j - p_j.
        share = (of_rest / self.complement).scatter_(1, self.top, 0.0)
        total = of_p.sum(1, keepdim=True) + of_rest.sum(1, keepdim=True) - share.sum(1, keepdim=True)
        of_top = of_rest.gather(1, self.top)
        falling = share.add_(total).mul_(self.mass).sub_(of_top).mul_(self.others)
        return torch.sub(of_p, falling.scatter_(1, self.top, self.top_p * total), out=falling)
