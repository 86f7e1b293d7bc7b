"""FeatureTransform: an orthogonal change of basis over the channels and the positions of a feature.

Dimensions: B batch, R rows of a sample, C channels, N positions, H x W a map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.runtime.hardware import whole_products

MAX_CHANNELS = 4096  # of a basis: its fit takes time with the third power
_CHANNELS_LAST = 2  # sides of a row of tokens, [N, C]; a map is [C, H, W], a vector [C]


@dataclass(frozen=True, eq=False)
class FeatureTransform:
    """Takes the mean away, then turns channels into principal components and positions into frequencies.

    Positions of a map go through an orthonormal two-dimensional DCT-II; those of tokens through a basis learnt from
    the sample, since class and register tokens are no neighbours of the others.
    """

    shape: tuple[int, ...]
    mean: np.ndarray[Any, Any]
    """float32: [C] of a vector or a map, [N, C] of tokens."""
    basis: np.ndarray[Any, Any]
    """float16 [C, C], a component per row."""
    positions: np.ndarray[Any, Any] | None
    """float16 [N, N] of tokens, a component per row; else None."""

    @property
    def numel(self) -> int:
        """Numbers of a row."""
        return math.prod(self.shape)

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """What a cache stores of the fit."""
        more = {} if self.positions is None else {"positions": self.positions}
        return {"mean": self.mean, "basis": self.basis, **more}

    def forward(self, rows: Tensor) -> Tensor:
        """Float32 [B, *shape] -> coefficients [B, numel], in the order channel component, position component."""
        mean, left, right = self._on(rows.device)
        with whole_products(rows.device):
            if len(self.shape) == 1:
                return (rows - mean) @ left.T
            grid = left @ self._channels_first(rows - mean).flatten(2)
            if len(right) == 1:
                return (grid @ right[0].T).flatten(1)
            return (right[0] @ grid.view(len(rows), *self.shape) @ right[1].T).flatten(1)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Coefficients [B, numel] -> float32 [B, *shape]."""
        mean, left, right = self._on(coefficients.device)
        with whole_products(coefficients.device):
            if len(self.shape) == 1:
                return coefficients @ left + mean
            if len(right) == 1:
                grid = left.T @ (coefficients.view(len(coefficients), len(left), -1) @ right[0])
                return grid.transpose(1, 2) + mean
            grid = right[0].T @ coefficients.view(-1, *self.shape) @ right[1]
            return (left.T @ grid.flatten(2)).view(-1, *self.shape) + mean

    def _channels_first(self, rows: Tensor) -> Tensor:
        return rows.transpose(1, 2) if len(self.shape) == _CHANNELS_LAST else rows

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, list[Tensor]]:
        mean, left = torch.from_numpy(self.mean).to(device), torch.from_numpy(self.basis).to(device).float()
        if self.positions is not None:
            return mean, left, [torch.from_numpy(self.positions).to(device).float()]
        if len(self.shape) == 1:
            return mean, left, []
        return mean[:, None, None], left, [cosines(side).to(device) for side in self.shape[1:]]


def fit_transform(sample: Tensor) -> FeatureTransform:
    """The transform fitted to rows [R, *shape], float32."""
    shape = tuple(sample.shape[1:])
    tokens = len(shape) == _CHANNELS_LAST
    mean = sample.mean(dim=(0, 2, 3)) if len(shape) > _CHANNELS_LAST else sample.mean(dim=0)
    centred = sample - (mean[:, None, None] if len(shape) > _CHANNELS_LAST else mean)
    channels = (
        centred.flatten(0, 1)
        if tokens
        else centred.flatten(2).transpose(1, 2).flatten(0, 1)
        if len(shape) > 1
        else centred
    )
    positions = _principal(centred.transpose(1, 2).flatten(0, 1)) if tokens else None
    return FeatureTransform(shape, mean.numpy(), _principal(channels), positions)


def cosines(side: int) -> Tensor:
    """The orthonormal DCT-II of `side` numbers, float32 [frequency, place]."""
    place, frequency = torch.arange(side, dtype=torch.float64), torch.arange(side, dtype=torch.float64)[:, None]
    table = torch.cos(math.pi * (place + 0.5) * frequency / side) * math.sqrt(2 / side)
    table[0] /= math.sqrt(2)
    return table.float()


def _principal(rows: Tensor) -> np.ndarray[Any, Any]:
    """Principal axes of rows [R, C] about 0, largest first, float16 [C, C]; the entry greatest in size is positive."""
    scale = rows.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    covariance = (rows / scale).T @ (rows / scale)
    axes = torch.linalg.eigh(covariance.double()).eigenvectors.T.flip(0)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return (axes * largest.sign()).numpy().astype(np.float16)
