"""One step per row, the finest that fits its bytes, and where a level's values lie on average.

Dimensions: B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

STEP_BYTES = 2  # uint16, little-endian
_PER_OCTAVE, _ONE = 16, 2048  # code c is a step of 2**((c - 2048) / 16)
_FINEST, _COARSEST = _ONE - 64 * _PER_OCTAVE, _ONE + 64 * _PER_OCTAVE
MAX_SIZE = 1e15  # of a number: squares of rows are finite, and the coarsest step moves it to 0
NUM_OFFSETS = 3  # of the levels 1, 2 and all higher ones


def step_of(code: Tensor) -> Tensor:
    """The step, float32, that a code means."""
    return torch.exp2((code - _ONE).float() / _PER_OCTAVE)


def finest_step(size: Callable[[Tensor], Tensor], room: int, rows: Tensor) -> Tensor:
    """The code of the finest step of each row that fits, int64 [B, 1].

    Args:
        size: steps [B, 1] -> what the rows take [B]; a coarser step never takes more, and the coarsest one fits.
        room: what a row may take.
        rows: [B, ...], for their number and device.
    """
    low = torch.full((len(rows), 1), _FINEST, dtype=torch.int64, device=rows.device)
    high = torch.full_like(low, _COARSEST)
    for _ in range((_COARSEST - _FINEST).bit_length()):
        middle = (low + high) // 2
        fits = (size(step_of(middle)) <= room)[:, None]
        low, high = torch.where(fits, low, middle + 1).minimum(high), torch.where(fits, middle, high)
    return high


def step_bytes(code: Tensor) -> Tensor:
    """Codes [B, 1] -> uint8 [B, 2]."""
    return torch.cat([code & 255, code >> 8], dim=1).to(torch.uint8)


def step_in(payload: Tensor) -> Tensor:
    """The step, float32 [B, 1], that the first bytes of the rows, uint8 [B, N], hold."""
    head = payload[:, :STEP_BYTES].to(torch.int64)
    return step_of((head[:, :1] + 256 * head[:, 1:]).clamp(_FINEST, _COARSEST))


def fit_offsets(scaled: Tensor, levels: Tensor) -> np.ndarray[Any, Any]:
    """How far the values of level 1, 2 and above lie from it on average, in steps, float32 [3].

    Args:
        scaled: sizes divided by their row's step.
        levels: their levels, of the same shape; 0 where none is kept.
    """
    found = []
    for inside in (levels == 1, levels == 2, levels >= NUM_OFFSETS):
        count = int(inside.sum())
        found.append(float(((scaled - levels) * inside).sum() / count) if count else 0.0)
    return np.array(found, dtype=np.float32)


def sizes_of(levels: Tensor, offsets: Tensor) -> Tensor:
    """The sizes, in steps, that levels mean: n + offset, and 0 for level 0; `offsets` is [1 + 3], of 0 first."""
    return levels.float() + offsets[levels.clamp(0, NUM_OFFSETS).to(torch.int64)]
