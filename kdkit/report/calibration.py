"""Whether probabilities are as large as they are right: reliability and expected calibration error.

Dimensions: C classes, N images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
"""Bins of equal width, as in Guo et al. 2017, "On calibration of modern neural networks", section 2."""


@dataclass(frozen=True)
class Calibration:
    """The reliability of predictions on labelled images."""

    confidence: list[float]
    """Mean probability of the likeliest class, for each bin that holds an image."""
    accuracy: list[float]
    """Share of the bin's images whose likeliest class is the label."""
    count: list[int]
    """Images of the bin."""
    error: float
    """Expected calibration error: the mean over the images of |accuracy - confidence| of their bin."""


def calibrate(probabilities: Tensor, labels: Tensor) -> Calibration:
    """The calibration of predictions.

    Args:
        probabilities: [N, C], at least one image.
        labels: the classes [N] int64.
    """
    confidence, choice = probabilities.double().max(dim=1)
    right = (choice == labels).double()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # (0, 1/15], (1/15, 2/15], ...
    count = torch.bincount(bins, minlength=BINS)
    filled = count > 0
    means = [torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, v)[filled] for v in (confidence, right)]
    mean_confidence, accuracy = (mean / count[filled] for mean in means)
    error = float(((accuracy - mean_confidence).abs() * count[filled]).sum() / len(labels))
    return Calibration(mean_confidence.tolist(), accuracy.tolist(), count[filled].tolist(), error)
