"""FeatureTransform: an orthogonal change of basis that gathers what rows of features share in few coefficients.

Dimensions: B batch, R rows of a sample, C channels, N positions, H x W a map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.runtime.hardware import whole_products

MAX_SIDE = 4096  # of a basis, which takes time with the third power of its side
LARGEST_OF_AXIS = 1.01  # a component is of unit length, apart from rounding
_TOKENS, _MAP = 2, 3  # sides of a row: tokens are [N, C], a map [C, H, W], a vector [C]
_VECTORS_PER_SIDE, _LEAST_VECTORS = 16, 1 << 15  # as many vectors of the sample as tell one axis from another


class FeatureTransform:
    """Takes the mean away, then turns channels into principal components and positions into frequencies.

    Positions of a map go through an orthonormal two-dimensional DCT-II, those of tokens through principal components of
    their own, because class and register tokens are not neighbours of the others. The order of coefficients is
    [component, horizontal frequency, vertical frequency] of a map, [position component, channel component] of tokens.

    Args:
        shape: shape of a row.
        arrays: "mean", [C] of a vector or a map, [N, C] of tokens; "basis" [C, C], a component per row; of tokens
            "positions" [N, N], a component per row.
        device: where rows and coefficients are.
    """

    def __init__(
        self, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray[Any, Any]], device: torch.device
    ) -> None:
        tensors = {name: torch.from_numpy(arrays[name]).to(device).float() for name in array_shapes(shape)}
        self._shape, self._mean, self._basis = shape, tensors["mean"], tensors["basis"]
        self._positions = tensors.get("positions")
        if len(shape) == _MAP:
            self._mean = self._mean[:, None, None]
            self._vertical, self._horizontal = (cosines(side).to(device) for side in shape[1:])

    def forward(self, rows: Tensor) -> Tensor:
        """Float32 [B, *shape] -> coefficients [B, numel]."""
        centred = rows - self._mean
        with whole_products(rows.device):
            if len(self._shape) != _MAP:
                turned = centred @ self._basis.T
                return turned if self._positions is None else (self._positions @ turned).flatten(1)
            grid = (self._basis @ centred.flatten(2)).view(rows.shape) @ self._horizontal.T
            return (grid.transpose(2, 3).contiguous() @ self._vertical.T).flatten(1)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Coefficients [B, numel] -> float32 [B, *shape]."""
        with whole_products(coefficients.device):
            if len(self._shape) != _MAP:
                grid = coefficients.view(-1, *self._shape)
                return (grid if self._positions is None else self._positions.T @ grid) @ self._basis + self._mean
            channels, height, width = self._shape
            grid = coefficients.view(-1, channels, width, height) @ self._vertical
            grid = grid.transpose(2, 3).contiguous() @ self._horizontal
            return (self._basis.T @ grid.flatten(2)).view(-1, *self._shape) + self._mean


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
