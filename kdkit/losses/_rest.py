"""The distribution without one class: what decoupled losses are made of, exact for confident rows too.

log(1 - p_c) is never taken from a rounded p_c: for the most probable class it comes from the logsumexp of the others.
Dimensions: B batch, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Stands for log 0. Finite, so that 0 * (MASKED - MASKED) is 0 and no NaN reaches a gradient, and small enough to stay
# finite in float32 when summed over a row.
MASKED = -1e30


def split_target(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-odds of the target [B], and the log-softmax over the non-targets [B, C] (MASKED at the target).

    Args:
        logits: [B, C], already softened.
        target: index labels [B].
    """
    index = target.unsqueeze(1)
    others = logits.scatter(1, index, MASKED)
    odds = logits.gather(1, index).squeeze(1) - torch.logsumexp(others, dim=1)
    return odds, F.log_softmax(others, dim=1)


def log_sum_without(logits: Tensor) -> Tensor:
    """For every class c: log sum over j != c of exp(z_j), from logits [B, C] to [B, C]."""
    top = logits.argmax(dim=1, keepdim=True)
    of_top = torch.logsumexp(logits.scatter(1, top, MASKED), dim=1, keepdim=True)
    # Any class but the top one has p <= 1/2, where log1p(-p) is exact; 0 keeps the unused branch finite.
    of_others = torch.log1p(-F.softmax(logits, dim=1).scatter(1, top, 0.0))
    return (torch.logsumexp(logits, dim=1, keepdim=True) + of_others).scatter(1, top, of_top)


def mean_without(logits: Tensor, log_sum: Tensor, value: Tensor) -> Tensor:
    """For every class c: the mean of `value` over the classes j != c under softmax(z_j, j != c), [B, C].

    Args:
        logits: z [B, C], without gradient.
        log_sum: `log_sum_without(logits)` [B, C].
        value: [B, C].
    """
    top = logits.argmax(dim=1, keepdim=True)
    weighted = F.softmax(logits, dim=1) * value
    total = weighted.sum(dim=1, keepdim=True)
    without_top = (logits.scatter(1, top, MASKED) - log_sum.gather(1, top)).exp()
    of_top = (without_top * value).sum(dim=1, keepdim=True)
    scale = (torch.logsumexp(logits, dim=1, keepdim=True) - log_sum).scatter(1, top, 0.0).exp()  # 1 / (1 - p_c)
    return ((total - weighted) * scale).scatter(1, top, of_top)


def binary_kl(student_odds: Tensor, teacher_odds: Tensor) -> Tensor:
    """KL divergence of two Bernoulli distributions given by their log-odds, elementwise."""
    yes = F.logsigmoid(teacher_odds) - F.logsigmoid(student_odds)
    no = F.logsigmoid(-teacher_odds) - F.logsigmoid(-student_odds)
    return torch.sigmoid(teacher_odds) * yes + torch.sigmoid(-teacher_odds) * no
