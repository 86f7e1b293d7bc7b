"""The distribution without one class, of which decoupled losses are made; exact for confident rows too.

log(1 - p_c) is never taken from a rounded p_c: for the most probable class it comes from the logsumexp of the others.
Dimensions: B batch, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.types import LOG_ZERO


def split_target(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the logits with LOG_ZERO at the target [B, C], their logsumexp [B], and the target's log-odds [B].

    Args:
        logits: [B, C], already softened.
        target: index labels [B].
    """
    index = target.unsqueeze(1)
    others = logits.scatter(1, index, LOG_ZERO)
    log_sum = torch.logsumexp(others, dim=1)
    return others, log_sum, logits.gather(1, index).squeeze(1) - log_sum


def binary_kl(student_odds: Tensor, teacher_odds: Tensor) -> Tensor:
    """Returns the KL divergence of two Bernoulli distributions given by their log-odds, elementwise."""
    yes = F.logsigmoid(teacher_odds) - F.logsigmoid(student_odds)
    no = F.logsigmoid(-teacher_odds) - F.logsigmoid(-student_odds)
    return torch.sigmoid(teacher_odds) * yes + torch.sigmoid(-teacher_odds) * no
