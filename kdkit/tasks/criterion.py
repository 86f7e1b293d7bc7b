"""Task losses that timm and torch do not have."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_NO_LABEL = -1


class LabelledCrossEntropy(nn.Module):
    """Cross-entropy, averaged over the samples of a batch that have a label; 0 where none has.

    For training on few labels and many images: an unlabelled sample has the target -1; its teacher alone counts.

    Args:
        label_smoothing: share of each label that is spread evenly over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns a scalar [] from logits [B, C] and class indices [B], -1 for no label, or soft labels [B, C]."""
        if target.is_floating_point():
            return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        total = F.cross_entropy(
            logits, target, ignore_index=_NO_LABEL, reduction="sum", label_smoothing=self.label_smoothing
        )
        return total / (target != _NO_LABEL).sum().clamp_min(1)
