"""The batch norm of losses with a convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that uses its running statistics for a single value per channel (B = 1, a 1 x 1 map)."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, D, H, W] -> the same shape."""
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)
