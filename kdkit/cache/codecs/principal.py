"""Principal components of a sample, and the bits that each is worth.

Dimensions: C classes, R rows of the sample, D components.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

_EXACT_SIDE = 2048  # rows or classes up to which exact eigenvectors take a second or two
_POWER_ITERATIONS = 4
_EXTRA = 16  # directions beyond the requested ones, so that the last of these converge too
_NEGLIGIBLE = 1e-3  # of the largest deviation: smaller ones cannot be told from rounding


def principal_components(rows: Tensor, rank: int, count: int) -> tuple[Tensor, Tensor]:
    """The first components of `rows` [R, C], which stand for `count` centred samples; float64.

    Returns orthonormal components [D, C], and deviations [D], descending.

    D is at most `rank`, and less where the rows span less. Signs are fixed (the largest entry of each component in
    magnitude is positive), and the large case starts from a fixed seed: equal rows give equal components.
    """
    if min(rows.shape) <= _EXACT_SIDE:
        basis = _by_eigenvectors(rows, min(rank, *rows.shape))
    else:
        basis = _by_subspace_iteration(rows.float(), rank).double()
    projected = torch.cat([chunk.double() @ basis.T for chunk in torch.split(rows, _EXACT_SIDE)])
    deviation, order = projected.square().sum(dim=0).div(count).sqrt().sort(descending=True, stable=True)
    signal = deviation > max(1e-6, _NEGLIGIBLE * float(deviation[0]))
    basis = basis[order][signal]
    peak = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    return basis * peak.sign(), deviation[signal]


def head_rows(head: Tensor, sample: Tensor, count: int) -> Tensor:
    """Rows [F, C] that vary as logits = head @ features do for independent features, as `count` samples would.

    Args:
        head: [C, F] weight of the teacher's last linear layer.
        sample: [R, C] centred sample, whose overall variance the rows are given.
        count: the number of rows of the sample that they count as.
    """
    rows = (head - head.mean(dim=0)).T.to(sample)
    return rows * (sample.square().sum() * count / len(sample) / rows.square().sum().clamp_min(1e-30)).sqrt()


def _by_eigenvectors(rows: Tensor, rank: int) -> Tensor:
    """Exact components [rank, C], from the smaller of the two products of `rows` with itself."""
    rows = rows.double()
    if rows.shape[1] <= rows.shape[0]:
        return _top_eigenvectors(rows.T @ rows, rank).T
    basis: Tensor = torch.linalg.qr(rows.T @ _top_eigenvectors(rows @ rows.T, rank))[0].T
    return basis


def _by_subspace_iteration(rows: Tensor, rank: int) -> Tensor:
    """Halko et al. 2011, "Finding structure with randomness", algorithm 4.4."""
    start = torch.randn(rows.shape[1], rank + _EXTRA, generator=torch.Generator().manual_seed(0))
    basis: Tensor = torch.linalg.qr(start)[0]
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(rows.T @ (rows @ basis))[0]
    small = rows @ basis
    return (basis @ _top_eigenvectors(small.T @ small, rank)).T


def _top_eigenvectors(matrix: Tensor, rank: int) -> Tensor:
    top: Tensor = torch.linalg.eigh(matrix)[1].flip(1)[:, :rank]
    return top


def allot_bits(deviation: Tensor, total: int, max_bits: int) -> list[int]:
    """Bits for each component, at most `max_bits` each and `total` in all: reverse water-filling, one bit at a time.

    Each bit goes where the deviation left, halved by every bit given so far, is largest, so that all components that
    get bits end with about the same error (Cover and Thomas, "Elements of Information Theory", section 10.3.3).
    """
    bits = [0] * len(deviation)
    queue = [(-float(left), i) for i, left in enumerate(deviation)]
    heapq.heapify(queue)
    for _ in range(min(total, max_bits * len(bits))):
        left, i = heapq.heappop(queue)
        bits[i] += 1
        if bits[i] < max_bits:
            heapq.heappush(queue, (left / 2, i))
    return bits
