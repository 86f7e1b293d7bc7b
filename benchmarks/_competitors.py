"""Formats of others for teacher outputs, decoded: what codecs.py and story.py compare kdkit's codecs with.

Each takes float32 rows [R, C] of logits or log-probabilities and returns log-probabilities [R, C] as they come back
from the format. A class that a format gives no probability is put at e^-30.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CENTROIDS, ROUNDS = 256, 20
NOTHING = -30.0


def top_k(rows: Tensor, k: int, *, renormalise: bool = False) -> Tensor:
    """Float16 values and 16-bit ids of the k likeliest classes: 4 k bytes.

    The rest is spread evenly, as TinyViT does it (microsoft/Cream, TinyViT/main.py), or left out and the k scaled to
    sum 1, as FKD's marginal_renorm does it (szq0214/FKD, utils_FKD.py).
    """
    values, ids = rows.softmax(dim=-1).topk(k, dim=-1)
    values = values.half().float()
    left = (1 - values.sum(dim=-1, keepdim=True)).clamp_min(1e-7)
    if renormalise:
        values, left = values / values.sum(dim=-1, keepdim=True), torch.full_like(left, math.exp(NOTHING))
    else:
        left = left / (rows.shape[-1] - k)
    return left.expand(rows.shape).scatter(-1, ids, values).clamp_min(math.exp(NOTHING)).log()


def sampled(rows: Tensor, row_bytes: int, seed: int = 0) -> tuple[Tensor, int]:
    """Classes drawn at random from the teacher's own distribution (Anshumann et al. 2025), and the number of draws.

    Stored are the ids that were drawn and how often, as bits; the number of draws is the greatest whose rows take at
    most `row_bytes` on average. The share of the draws is an unbiased estimate of the probability.
    """
    num_classes = rows.shape[-1]
    probabilities = rows.softmax(dim=-1)
    best = (torch.zeros_like(rows), 0)
    for draws in (2**power * step // 8 for power in range(3, 12) for step in range(8, 16)):
        generator = torch.Generator().manual_seed(seed)
        ids = probabilities.multinomial(draws, replacement=True, generator=generator)
        counts = torch.zeros_like(rows).scatter_add_(-1, ids, torch.ones(ids.shape))
        entry_bits = math.ceil(math.log2(num_classes)) + math.ceil(math.log2(draws + 1))
        if (counts > 0).sum(dim=-1).float().mean().item() * entry_bits > 8 * row_bytes:
            break
        best = counts, draws
    counts, draws = best
    return (counts / draws).clamp_min(math.exp(NOTHING)).log(), draws


@dataclass(frozen=True)
class ProductQuantizer:
    """One byte for each of M groups of principal components: a vector-quantised label of M bytes.

    Components go to the group with the least variance so far (Ge et al. 2013, "Optimized Product Quantization", its
    parametric form); each group has 256 centroids of k-means.
    """

    mean: Tensor  # [C]
    axes: Tensor  # [C, M * S], the components of each group side by side
    centroids: Tensor  # [M, 256, S]

    @classmethod
    def fit(cls, rows: Tensor, row_bytes: int, seed: int = 0) -> ProductQuantizer:
        """Fits the groups and centroids to rows [R, C] of logits."""
        centred = rows - rows.mean(dim=-1, keepdim=True)
        mean = centred.mean(dim=0)
        variances, axes = torch.linalg.eigh(torch.cov((centred - mean).T))
        size = rows.shape[-1] // row_bytes
        groups: list[list[int]] = [[] for _ in range(row_bytes)]
        logs = [0.0] * row_bytes
        for component in reversed(range(rows.shape[-1] - row_bytes * size, rows.shape[-1])):
            group = min((g for g in range(row_bytes) if len(groups[g]) < size), key=logs.__getitem__)
            groups[group].append(component)
            logs[group] += math.log(max(float(variances[component]), 1e-12)) + 30
        axes = axes[:, torch.tensor(groups).flatten()]
        points = ((centred - mean) @ axes).unflatten(-1, (row_bytes, size)).movedim(0, 1)
        return cls(mean, axes, _k_means(points, seed))

    def decoded(self, rows: Tensor) -> Tensor:
        """The rows as they come back."""
        groups, _, size = self.centroids.shape
        points = ((rows - rows.mean(dim=-1, keepdim=True) - self.mean) @ self.axes).unflatten(-1, (groups, size))
        nearest = torch.cdist(points.movedim(0, 1), self.centroids).argmin(dim=-1)  # [M, R]
        found = self.centroids.gather(1, nearest[..., None].expand(-1, -1, size)).movedim(0, 1).flatten(1)
        return (found @ self.axes.T + self.mean).log_softmax(dim=-1)


def _k_means(points: Tensor, seed: int) -> Tensor:
    """Centroids [M, 256, S] of points [M, R, S]; a centroid without a point stays where it is."""
    start = torch.randperm(points.shape[1], generator=torch.Generator().manual_seed(seed))[:CENTROIDS]
    centroids = points[:, start].clone()
    for _ in range(ROUNDS):
        nearest = torch.cdist(points, centroids).argmin(dim=-1)
        sums = torch.zeros_like(centroids).scatter_add_(1, nearest[..., None].expand_as(points), points)
        numbers = torch.zeros(centroids.shape[:2]).scatter_add_(1, nearest, torch.ones(nearest.shape))[..., None]
        centroids = torch.where(numbers > 0, sums / numbers.clamp_min(1), centroids)
    return centroids
