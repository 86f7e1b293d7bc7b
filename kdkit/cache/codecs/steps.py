"""One step per row, in powers of two with 16 steps per octave; and whole numbers as the little-endian bytes of a row.

Dimensions: B batch.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from kdkit.cache.codecs.raw import from_bytes

STEP_BYTES = 2
PER_OCTAVE, ONE, _OCTAVES = 16, 2048, 64  # code c is a step of 2**((c - 2048) / 16), from 2**-128 to 2**64
COARSEST = ONE + _OCTAVES * PER_OCTAVE
MAX_SIZE = 1e15  # of a number: squares of rows are finite, and the coarsest step takes it to level 0


@cache
def steps(device: torch.device) -> Tensor:
    """The step of each code, float32; a table, because powers of two are rounded differently by different devices."""
    codes = np.arange(COARSEST + 1, dtype=np.float64)
    return torch.from_numpy(np.exp2((codes - ONE) / PER_OCTAVE).astype(np.float32)).to(device)


def flat_value(payload: Tensor) -> Tensor:
    """The float32 number of a row of equal numbers, uint8 [B, 4] -> [B, 1]; finite, as a damaged row may hold any."""
    return from_bytes(payload, torch.float32).nan_to_num(0.0).clamp(-MAX_SIZE, MAX_SIZE)


def as_bytes(number: Tensor, count: int) -> Tensor:
    """Integers [B, 1] -> uint8 [B, count], little-endian."""
    return torch.cat([number >> 8 * byte & 255 for byte in range(count)], dim=1).to(torch.uint8)


def as_number(payload: Tensor) -> Tensor:
    """Uint8 [B, count], little-endian -> int64 [B, 1]."""
    shift = 8 * torch.arange(payload.shape[1], device=payload.device)
    return (payload.to(torch.int64) << shift).sum(dim=1, keepdim=True)
