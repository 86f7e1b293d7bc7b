"""The distribution without one class: what decoupled losses are made of, exact for confident rows too.

log(1 - p_c) is never taken from a rounded p_c: for the most probable class it comes from the logsumexp of the others.
Dimensions: B batch, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Stands for log 0. Finite, so that 0 * (MASKED - MASKED) is 0 and no NaN reaches a gradient, and small enough to stay
# finite in float32 when summed over a row.
MASKED = -1e30


def split_target(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits with MASKED at the target [B, C], their logsumexp [B], and the target's log-odds [B].

    Args:
        logits: [B, C], already softened.
        target: index labels [B].
    """
    index = target.unsqueeze(1)
    others = logits.scatter(1, index, MASKED)
    log_sum = torch.logsumexp(others, dim=1)
    return others, log_sum, logits.gather(1, index).squeeze(1) - log_sum


class LeaveOneOut:
    """softmax(z) without each class in turn, from logits z [B, C] without gradient.

    Attributes:
        p: softmax(z) [B, C].
    """

    def __init__(self, logits: Tensor) -> None:
        largest, self._top = logits.max(dim=1, keepdim=True)
        others = logits.scatter(1, self._top, MASKED)
        self._logits, self.p, self._without_top = logits, F.softmax(logits, dim=1), F.softmax(others, dim=1)
        # A largest probability is at least 1 / C: its logarithm gives the logsumexp without another pass.
        self._log_all = largest - self.p.gather(1, self._top).log()
        self._log_others = others.amax(dim=1, keepdim=True) - self._without_top.amax(dim=1, keepdim=True).log()
        # Any class but the top one has p <= 1/2, where 1 - p is exact to rounding.
        self._complement = (1 - self.p).scatter_(1, self._top, 1.0)

    def mixture(self, weights: Tensor) -> Tensor:
        """sum over c of weights_c * softmax(z_j, j != c): [B, C] from weights [B, C]."""
        # Without c, p_j becomes p_j / (1 - p_c): safe for every c but the top one, which follows by itself.
        share = (weights / self._complement).scatter_(1, self._top, 0.0)
        mixed = share.sum(dim=1, keepdim=True).sub(share).mul_(self.p)
        return mixed.addcmul_(weights.gather(1, self._top), self._without_top)

    def combine(self, of_logit: Tensor, of_rest: Tensor, of_all: Tensor) -> Tensor:
        """sum over c of of_logit_c z_c + of_rest_c (log sum over j != c of exp z_j), + of_all logsumexp(z): [B].

        `of_all` is [B, 1], the others [B, C].
        """
        log_rest = self._complement.log().add_(self._log_all).scatter_(1, self._top, self._log_others)
        total = log_rest.mul_(of_rest).addcmul_(of_logit, self._logits).sum(dim=1, keepdim=True)
        return (total + of_all * self._log_all).squeeze(1)


class Combination(torch.autograd.Function):
    """LeaveOneOut(logits).combine(of_logit, of_rest, of_all), differentiable for the logits.

    Written out because its slope is what LeaveOneOut knows already: the value needs no differentiation.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, of_logit: Tensor, of_rest: Tensor, of_all: Tensor) -> Tensor:
        """The value [B]; keeps its gradient for the logits [B, C]."""
        without = LeaveOneOut(logits)
        ctx.save_for_backward(without.mixture(of_rest).add_(of_logit).addcmul_(of_all, without.p))
        return without.combine(of_logit, of_rest, of_all)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient for the logits; nothing else takes one."""
        (slope,) = ctx.saved_tensors
        return grad.unsqueeze(1) * slope, None, None, None


def binary_kl(student_odds: Tensor, teacher_odds: Tensor) -> Tensor:
    """KL divergence of two Bernoulli distributions given by their log-odds, elementwise."""
    yes = F.logsigmoid(teacher_odds) - F.logsigmoid(student_odds)
    no = F.logsigmoid(-teacher_odds) - F.logsigmoid(-student_odds)
    return torch.sigmoid(teacher_odds) * yes + torch.sigmoid(-teacher_odds) * no
