"""The second derivative of the encoder's objective, in the smaller of two forms.

Dimensions: B batch, M heavy classes, D components, W components of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 32  # coefficients that are rounded together
_THIN = 2 / 3  # rows per component up to which the thin form is the quicker
_GRAM_BLOCK = 64  # rows of a product with itself that are computed together


class Curvature(Protocol):
    """rows' rows + diagonal, [D, D] for each of B objectives."""

    def solve(self, right: Tensor) -> Tensor:
        """The x [B, D] for which curvature times x is `right` [B, D]."""

    def block(self, here: slice) -> Tensor:
        """The curvature among the components `here`, [B, W, W]."""

    def carry(self, carried: Tensor | None, change: Tensor, here: slice) -> Tensor:
        """What `felt` needs to know after the components `here` have changed by `change` [B, W]."""

    def felt(self, carried: Tensor, here: slice) -> Tensor:
        """By how much all changes so far have moved the gradient of the components `here`, [B, W]."""


def curvature_of(rows: Tensor, diagonal: Tensor) -> Curvature:
    """The curvature rows' rows + diagonal of rows [B, M, D], which it may change, and a positive diagonal [B, D]."""
    thin = rows.shape[1] <= _THIN * rows.shape[2]
    return ThinCurvature(rows, diagonal) if thin else FullCurvature(rows, diagonal)


class FullCurvature:
    """The matrix itself, [B, D, D], for more than about as many rows as components."""

    def __init__(self, rows: Tensor, diagonal: Tensor) -> None:
        self._matrix = _mirrored(_lower_gram(rows.mT))
        self._matrix.diagonal(dim1=1, dim2=2).add_(diagonal)

    @cached_property
    def _factor(self) -> Tensor:
        return _cholesky(self._matrix)

    def solve(self, right: Tensor) -> Tensor:
        """By Cholesky factors of the matrix."""
        return _solve(self._factor, right)

    def block(self, here: slice) -> Tensor:
        """A block of the matrix."""
        return self._matrix[:, here, here]

    def carry(self, carried: Tensor | None, change: Tensor, here: slice) -> Tensor:
        """The moves of the gradients of the components after `here`; those before are not looked at again."""
        moved = (change[:, None] @ self._matrix[:, here, here.stop :])[:, 0]
        return moved if carried is None else carried[:, here.stop - here.start :] + moved

    def felt(self, carried: Tensor, here: slice) -> Tensor:
        """The first of the moves that are carried."""
        return carried[:, : here.stop - here.start]


class ThinCurvature:
    """The rows, scaled so that the diagonal is 1, for clearly fewer rows than components.

    Its inverse needs the factors of a matrix [B, M, M] alone (Sherman, Morrison and Woodbury).
    """

    def __init__(self, rows: Tensor, diagonal: Tensor) -> None:
        self._scale = diagonal.sqrt()
        self._rows = rows.div_(self._scale[:, None])

    @cached_property
    def _factor(self) -> Tensor:
        matrix = _lower_gram(self._rows)
        matrix.diagonal(dim1=1, dim2=2).add_(1)
        return _cholesky(matrix)

    def solve(self, right: Tensor) -> Tensor:
        """With the factors of 1 + rows rows'."""
        scaled = right / self._scale
        seen = _solve(self._factor, (scaled[:, None] @ self._rows.mT)[:, 0])
        return (scaled - (seen[:, None] @ self._rows)[:, 0]) / self._scale

    def block(self, here: slice) -> Tensor:
        """The product of the columns `here` with themselves."""
        rows, scale = self._rows[:, :, here], self._scale[:, here]
        matrix = rows.mT @ rows
        matrix.diagonal(dim1=1, dim2=2).add_(1)
        return matrix * scale[:, :, None] * scale[:, None]

    def carry(self, carried: Tensor | None, change: Tensor, here: slice) -> Tensor:
        """The moves of the rows' values, [B, M]."""
        moved = ((change * self._scale[:, here])[:, None] @ self._rows[:, :, here].mT)[:, 0]
        return moved if carried is None else carried + moved

    def felt(self, carried: Tensor, here: slice) -> Tensor:
        """The moves of the rows' values, seen from the components `here`."""
        return (carried[:, None] @ self._rows[:, :, here])[:, 0] * self._scale[:, here]


def blocks(rank: int) -> Iterator[slice]:
    """Slices of BLOCK components; the last may be smaller."""
    return (slice(start, min(start + BLOCK, rank)) for start in range(0, rank, BLOCK))


def _lower_gram(rows: Tensor) -> Tensor:
    """Rows rows', [B, M, M] of [B, M, D], in blocks; above the diagonal's blocks it is 0, which factors do not read."""
    size = rows.shape[1]
    matrix = rows.new_zeros(len(rows), size, size)
    for start in range(0, size, _GRAM_BLOCK):
        stop = start + _GRAM_BLOCK
        torch.matmul(rows[:, start:], rows[:, start:stop].mT, out=matrix[:, start:, start:stop])
    return matrix


def _mirrored(lower: Tensor) -> Tensor:
    """The same matrix, with the blocks above those of the diagonal filled by symmetry, in place."""
    for start in range(0, lower.shape[1], _GRAM_BLOCK):
        stop = start + _GRAM_BLOCK
        lower[:, start:stop, stop:] = lower[:, stop:, start:stop].mT
    return lower


def _cholesky(matrix: Tensor) -> Tensor:
    factor: Tensor = torch.linalg.cholesky_ex(matrix)[0]  # unchecked: a check would wait for the device each time
    return factor


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    """The solution of (factor factor') x = right [B, N]; torch.cholesky_solve would copy the factor each time."""
    forward = torch.linalg.solve_triangular(factor, right[:, :, None], upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, forward, upper=True)
    return solution[:, :, 0]
