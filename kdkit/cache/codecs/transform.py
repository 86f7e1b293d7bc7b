"""FeatureTransform: an orthogonal change of basis that gathers what rows of features share in few coefficients.

Dimensions: B batch, R rows of a sample, C channels, N positions, H x W a map, J kept coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from kdkit.runtime.hardware import whole_products

MAX_SIDE = 4096  # of a basis, which takes time with the third power of its side
LARGEST_OF_AXIS = 1.01  # a component is of unit length, apart from rounding
_TOKENS, _MAP = 2, 3  # sides of a row: tokens are [N, C], a map [C, H, W], a vector [C]
_VECTORS_PER_SIDE, _LEAST_VECTORS = 16, 1 << 15  # as many vectors of the sample as tell one axis from another


class Scratch:
    """Memory of two grids of coefficients for decoding many rows in chunks.

    New memory for each step of each chunk takes a CPU as long as the steps.
    """

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self._parts = torch.empty(2, rows * width, dtype=torch.float32, device=device)

    def pair(self, rows: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Both as [rows, width] of a dtype of four bytes, contiguous; the numbers are what was last written there."""
        first, second = (part[: rows * width].view(dtype).view(rows, width) for part in self._parts)
        return first, second


class FeatureTransform:
    """Takes the mean away, then turns channels into principal components and positions into frequencies.

    Positions of a map go through an orthonormal two-dimensional DCT-II, those of tokens through principal components of
    their own, because class and register tokens are not neighbours of the others. The order of all coefficients is
    [component, horizontal frequency, vertical frequency] of a map, [position component, channel component] of tokens.

    Args:
        shape: shape of a row.
        arrays: "mean", [C] of a vector or a map, [N, C] of tokens; "basis" [C, C], a component per row; of tokens
            "positions" [N, N], a component per row.
        device: where rows and coefficients are.
        kept: the J coefficients that are not left out, in their order; by default all.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        arrays: Mapping[str, np.ndarray[Any, Any]],
        device: torch.device,
        kept: np.ndarray[Any, Any] | None = None,
    ) -> None:
        tensors = {name: torch.from_numpy(arrays[name]).to(device).float() for name in array_shapes(shape)}
        self._shape, self._mean, self._basis = shape, tensors["mean"], tensors["basis"]
        self._positions = tensors.get("positions")
        if len(shape) == _MAP:
            # As large as a row, because a CPU adds numbers of equal shape in a fifth of the time.
            self._mean = self._mean[:, None, None].expand(shape).contiguous()
            self._vertical, self._horizontal = (cosines(side).to(device) for side in shape[1:])
        kept = np.arange(math.prod(shape)) if kept is None else kept
        components, place, self._grid_size = _grid(shape, kept)
        self._kept, self._place = (torch.from_numpy(index).to(device) for index in (kept, place))
        self._used = self._basis[torch.from_numpy(components).to(device)]

    def forward(self, rows: Tensor) -> Tensor:
        """Float32 [B, *shape] -> the kept coefficients [B, J]."""
        centred = rows - self._mean
        with whole_products(rows.device):
            if len(self._shape) != _MAP:
                turned = centred @ self._basis.T
                turned = turned if self._positions is None else self._positions @ turned
            else:
                grid = (self._basis @ centred.flatten(2)).view(rows.shape) @ self._horizontal.T
                turned = grid.transpose(2, 3).contiguous() @ self._vertical.T
        return turned.flatten(1).gather(1, self._kept.expand(len(rows), -1))

    def scratch(self, rows: int) -> Scratch:
        """Memory with which so many rows are decoded together."""
        return Scratch(rows, self._grid_size, self._mean.device)

    def inverse(self, coefficients: Tensor, scale: Tensor, into: Tensor, scratch: Scratch) -> None:
        """The kept coefficients [B, J] times a scale per row [B, 1] -> float32 [B, *shape], written to `into`.

        The coefficients may lie in the second part of `scratch`, whose numbers are lost.

        Components are the last side of the grid, and those of which no coefficient is kept have no place in it: no
        product moves an axis, and the last one, with the basis, gives rows as they are.
        """
        rows, used = len(coefficients), len(self._used)
        grid, other = scratch.pair(rows, self._grid_size)
        if grid.shape[1] > len(self._place):
            grid.zero_()
        grid.scatter_(1, self._place.expand(rows, -1), coefficients)
        with whole_products(coefficients.device):
            if len(self._shape) != _MAP:
                grid, other = (part.view(rows, *self._shape[:-1], used) for part in (grid, other))
                if self._positions is not None:
                    grid = torch.matmul(self._positions.T, grid, out=other)
                torch.matmul(grid, self._used, out=into)
            else:
                _, height, width = self._shape
                columns, lines = (rows, height, width * used), (rows * height, width, used)
                _times(self._vertical.T, grid.view(columns), out=other.view(columns))
                _times(self._horizontal.T, other.view(lines), out=grid.view(lines))
                grid = rearrange(grid.view(lines), "(b h) w a -> b a (h w)", b=rows)
                _times(self._used.T, grid, out=into.flatten(2))
            torch.addcmul(self._mean, into, scale.view(-1, *(1 for _ in self._shape)), out=into)


def _grid(shape: tuple[int, ...], kept: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
    """The components of which a coefficient is kept, the place of each kept one in [..., component], and the size."""
    order: np.ndarray[Any, Any] = np.arange(math.prod(shape))
    if len(shape) == _MAP:
        order = rearrange(order, "(a w h) -> (h w) a", w=shape[2], h=shape[1])
    else:
        order = order.reshape(-1, shape[-1])
    components = np.flatnonzero(np.isin(order, kept).any(axis=0))
    used = order[:, components]
    place = np.empty(math.prod(shape), dtype=np.int64)
    place[used.reshape(-1)] = np.arange(used.size)
    return components, place[kept], used.size


def _times(matrix: Tensor, batch: Tensor, out: Tensor | None = None) -> Tensor:
    """matrix [M, K] times each of batch [B, K, N]."""
    return torch.bmm(matrix.expand(len(batch), *matrix.shape), batch, out=out)


def array_shapes(shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> dtype and shape of the arrays of the transform of rows of `shape`."""
    channels = shape[0] if len(shape) == _MAP else shape[-1]
    found = {"mean": ("float32", shape if len(shape) < _MAP else (channels,)), "basis": ("float16", (channels,) * 2)}
    return {**found, "positions": ("float16", (shape[0],) * 2)} if len(shape) == _TOKENS else found


def largest_side(shape: tuple[int, ...]) -> int:
    """The largest side of a basis for rows of `shape`."""
    return max(size[-1] for name, (_, size) in array_shapes(shape).items() if name != "mean")


def fit_transform(sample: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of the transform fitted to rows [R, *shape], float32 on the CPU."""
    dims = (0, 2, 3) if sample.ndim == 1 + _MAP else 0
    mean = sample.mean(dim=dims, dtype=torch.float64).float()
    if sample.ndim == 1 + _MAP:
        return {"mean": mean.numpy(), "basis": _principal_axes((sample - mean[:, None, None]).movedim(1, -1))}
    centred = sample - mean
    positions = {"positions": _principal_axes(centred.transpose(1, 2))} if centred.ndim > _TOKENS else {}
    return {"mean": mean.numpy(), "basis": _principal_axes(centred), **positions}


@cache
def cosines(side: int) -> Tensor:
    """The orthonormal DCT-II of `side` numbers, float32 [frequency, place]."""
    place, frequency = np.arange(side), np.arange(side)[:, None]
    table = np.cos(np.pi * (place + 0.5) * frequency / side) * np.sqrt(2 / side)
    table[0] = np.sqrt(1 / side)
    return torch.from_numpy(table.astype(np.float32))


def _principal_axes(vectors: Tensor) -> np.ndarray[Any, Any]:
    """All principal axes of vectors [..., C] about 0, largest first, float16 [C, C].

    Signs are fixed: the entry of an axis that is greatest in size is positive.
    """
    most = max(_LEAST_VECTORS, _VECTORS_PER_SIDE * vectors.shape[-1])
    flat, positions = vectors.flatten(0, -2), math.prod(vectors.shape[1:-1])
    stride = -(-len(flat) // most)
    while math.gcd(stride, positions) > 1:  # it would meet some positions alone, such as the border of a map
        stride += 1
    flat = flat[::stride]
    flat = flat / flat.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    axes = torch.linalg.eigh((flat.T @ flat).double()).eigenvectors.T.flip(0)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    found: np.ndarray[Any, Any] = (axes * largest.sign()).numpy().astype(np.float16)
    return found
