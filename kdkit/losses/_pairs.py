"""Distances and angles within a batch, from its Gram matrix in float64: no difference of two samples is ever stored.

A squared distance from a Gram matrix is rounded in proportion to the samples' squared norms. In float64, and with the
batch's mean subtracted, that is below what float32 features resolve. Pairs below the rounding count as equal.

Dimensions: B batch, D width, J vertices of a block.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from kdkit.losses._blocks import blocks
from kdkit.losses._first_order import first_order
from kdkit.types import to_double

_NOISE = 512  # in roundings of the sum of two squared norms
_ON_CPU, _ON_DEVICE = 2**16, 2**22  # elements [J, B, B] of a block; of the first, five tensors fit a CPU's cache


class Gram(torch.autograd.Function):
    """rows @ rows.T in float64 from rows [B, D], without a copy of all of them in float64 on a CPU.

    With `is_centred` the mean row is subtracted first. Its gradient then counts only for functions of differences,
    such as distances: the mean is treated as a constant, because they do not depend on it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, is_centred: bool) -> Tensor:
        """The products [B, B]; keeps the rows."""
        ctx.save_for_backward(rows)
        ctx.is_centred = is_centred
        parts = (_part(rows, columns, is_centred) for columns in blocks(rows, dim=1))
        return functools.reduce(torch.add, (part @ part.T for part in parts))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient for the rows [B, D]."""
        (rows,) = ctx.saved_tensors
        both, slope = grad + grad.T, torch.empty_like(rows)
        for columns in blocks(rows, dim=1):
            slope[:, columns] = both @ _part(rows, columns, ctx.is_centred)
        return slope, None


def _part(rows: Tensor, columns: slice, is_centred: bool) -> Tensor:
    part = to_double(rows[:, columns])
    return part - part.mean(dim=0) if is_centred else part


def distances(gram: Tensor) -> Tensor:
    """Gram matrix [B, B] -> distances [B, B], exactly 0 for equal samples, with a zero gradient there."""
    squared = gram.diagonal()
    total = squared[:, None] + squared
    apart = total - 2 * gram
    is_equal = apart <= _NOISE * torch.finfo(gram.dtype).eps * total
    return torch.where(is_equal, 0.0, torch.where(is_equal, 1.0, apart).sqrt())


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over i, j, k of smooth_l1(a_s - a_t), a[i, j, k] the cosine of the angle at j; from rows [B, D], in float64.

    Time O(B^3) and memory O(B^2), both independent of D beyond the Gram matrices.
    """
    sides = []
    for rows in (student, teacher):
        gram = Gram.apply(rows, True)
        lengths = distances(gram)
        is_zero = lengths == 0
        sides += [gram, torch.where(is_zero, 0.0, 1 / torch.where(is_zero, 1.0, lengths))]
    loss: Tensor = _AngleLoss.apply(*sides)
    return loss


class _AngleLoss(torch.autograd.Function):
    """`angle_loss` of Gram matrices and inverse distances, all [B, B]; block by block, with its gradient."""

    @staticmethod
    def forward(ctx: Any, gram: Tensor, inverse: Tensor, teacher_gram: Tensor, teacher_inverse: Tensor) -> Tensor:
        """The value, a scalar; keeps its gradient for both matrices of the student."""
        total, of_gram, of_inverse = gram.new_zeros(()), torch.zeros_like(gram), torch.empty_like(inverse)
        for vertices in _vertices(gram):
            cosines = _cosines(gram, inverse, vertices)
            apart = cosines - _cosines(teacher_gram, teacher_inverse, vertices)
            slope = apart.clamp(-1, 1)  # symmetric in i and k, like everything here
            total += apart.sub_(slope, alpha=0.5).mul_(slope).sum()
            reach = inverse[vertices]
            # a = N r_i r_k: its slope for r_i is a / r_i, from i and again from k.
            twice = 2 * cosines.mul_(slope).sum(dim=2)
            of_inverse[vertices] = torch.where(reach == 0, 0.0, twice / torch.where(reach == 0, 1.0, reach))
            # N = g_ik - g_ij - g_jk + g_jj
            slope.mul_(reach[:, :, None]).mul_(reach[:, None, :])
            of_gram += slope.sum(dim=0)
            at_vertex = slope.sum(dim=2)
            of_gram[vertices] -= 2 * at_vertex
            of_gram.diagonal()[vertices] += at_vertex.sum(dim=1)
        ctx.save_for_backward(of_gram, of_inverse)
        return total / len(gram) ** 3

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient for the student's Gram matrix and inverse distances."""
        of_gram, of_inverse = ctx.saved_tensors
        scale = grad / len(of_gram) ** 3
        return of_gram * scale, of_inverse * scale, None, None


def _cosines(gram: Tensor, inverse: Tensor, vertices: slice) -> Tensor:
    """Cosines [J, B, B] of the angles at the vertices; 0 where a side of the angle has no length."""
    at, reach = gram[vertices], inverse[vertices]
    own = gram.diagonal()[vertices]
    found = gram - at[:, :, None]
    found -= (at - own[:, None])[:, None, :]
    return found.mul_(reach[:, :, None]).mul_(reach[:, None, :])


def _vertices(gram: Tensor) -> list[slice]:
    """Slices of the batch whose blocks are small; a single one for the compiler, which fuses the passes itself."""
    size = len(gram)
    if torch.compiler.is_compiling():
        return [slice(0, size)]
    step = max(1, (_ON_CPU if gram.device.type == "cpu" else _ON_DEVICE) // size**2)
    return [slice(start, start + step) for start in range(0, size, step)]
