"""The loss on labels that every task has by default.

Dimensions: B batch, C classes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit.errors import LabelError


class LabelledCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy averaged over the samples of a batch that have a label; exactly 0 if none has, whatever `weight`.

    An unlabelled sample has the target -1 and takes no part. The label of a mixed sample is soft; the part of it that
    comes from an unlabelled sample is missing, so that its row sums to less than 1. The average is then over the sum of
    all rows. It equals torch's cross-entropy if every sample is labelled, and never waits for the device.

    Args:
        weight: factor of each class [C]; all 1 when None.
        label_smoothing: share of each label that is spread evenly over all classes, from 0 to 1.
    """

    takes_unlabelled: ClassVar[bool] = True
    """A task passes on all samples, not only those with a label."""

    def __init__(self, weight: Tensor | None = None, *, label_smoothing: float = 0.0) -> None:
        super().__init__(weight, ignore_index=-1, label_smoothing=label_smoothing)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns a scalar [] from logits [B, C] and class indices [B], -1 for no label, or soft labels [B, C].

        Raises:
            LabelError: a class index is none of the C classes; on the CPU alone, because another device would have to
                be waited for. kdkit's own loops compare all labels before the first step.
        """
        if target.ndim == logits.ndim:
            return self._soft(logits, target)
        try:
            total = F.cross_entropy(
                logits, target, self.weight, reduction="sum", ignore_index=-1, label_smoothing=self.label_smoothing
            )
        except IndexError:  # torch checks it here
            num_classes = logits.shape[1]
            odd = int(target[(target < -1) | (target >= num_classes)][0])
            raise LabelError(
                f"the label {odd} is none of the student's {num_classes} classes: expected 0 to {num_classes - 1}, or "
                "-1 for no label"
            ) from None
        factors = (target >= 0).to(total.dtype)
        if self.weight is not None:
            factors = factors * self.weight[target.clamp_min(0)]
        count = factors.sum()
        # A mean over nothing, or over classes of weight 0 alone, would be NaN, also in its gradient.
        return total / torch.where(count > 0, count, torch.ones_like(count))

    def _soft(self, logits: Tensor, target: Tensor) -> Tensor:
        known = target.sum(dim=1, keepdim=True).clamp(max=1)  # the labelled share of each sample [B, 1]
        if self.label_smoothing > 0:
            target = (1 - self.label_smoothing) * target + self.label_smoothing * known / target.shape[1]
        labelled = known.sum()
        scale = torch.where(labelled > 0, len(target) / labelled, torch.zeros_like(labelled))
        return F.cross_entropy(logits, target, weight=self.weight) * scale
