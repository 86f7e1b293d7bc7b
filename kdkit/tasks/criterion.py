"""Task losses that timm and torch do not have."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LabelledCrossEntropy(nn.Module):
    """Cross-entropy, averaged over the samples of a batch that have a label; 0 where none has.

    For training on few labels and many images: an unlabelled sample has the target -1; only its distillation loss
    counts.
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns a scalar [] from logits [B, C] and class indices [B], -1 for no label."""
        labelled = target >= 0
        each = F.cross_entropy(logits, target.clamp_min(0), reduction="none")
        return (each * labelled).sum() / labelled.sum().clamp_min(1)
