"""One step per row, in powers of two with 16 steps per octave; and whole numbers as the little-endian bytes of a row.

Dimensions: B batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from kdkit.cache.codecs.raw import from_bytes

STEP_BYTES = 2
PER_OCTAVE, ONE, _OCTAVES = 16, 2048, 64  # code c is a step of 2**((c - 2048) / 16), from 2**-128 to 2**64
COARSEST = ONE + _OCTAVES * PER_OCTAVE
MAX_SIZE = 1e15  # of a number: squares of rows are finite, and the coarsest step takes it to level 0
_SAMPLED = 2048  # numbers of a row that tell about which step fits
_NEAR, _ROUNDS = 6, 10  # looks near the place where the last one points; rounds that halve 1,023 codes to 1
_EXACT = 1 << 22  # float32 adds whole numbers exactly up to 2**24


@cache
def steps(device: torch.device) -> Tensor:
    """The step of each code, float32; a table, because powers of two are rounded differently by different devices."""
    codes = np.arange(COARSEST + 1, dtype=np.float64)
    return torch.from_numpy(np.exp2((codes - ONE) / PER_OCTAVE).astype(np.float32)).to(device)


def finest(excess: Callable[[Tensor, int], Tensor], room: int, numbers: int, low: Tensor, high: Tensor) -> Tensor:
    """The least code in low..high at which each row fits, int64 [B, 1]; `high` where none below it does.

    On a CPU, where the host need not wait to learn that all rows are found, a part of the numbers says where to look
    first, and the bits there say where next, because rows take about half as many at steps twice as coarse.

    Args:
        excess: (codes [B, 1], every) -> bits that rows take beyond their room if each `every`-th number stands for so
            many, [B, 1]. A row must not take more at a coarser step.
        room: bits of a row.
        numbers: of a row.
        low, high: int64 [B, 1], apart by less than 1,024.
    """
    every = numbers // _SAMPLED if low.device.type == "cpu" else 0
    if every < 2:
        return _bisected(lambda code: excess(code, 1), low, high)
    probe = _bisected(lambda code: excess(code, every), low, high)
    for tries in itertools.count():
        if not bool((low < high).any()):
            return high
        found = excess(probe, 1)
        low, high = _narrowed(found, probe, low, high)
        away = (PER_OCTAVE * (1 + found / room).clamp_min(1e-9).log2()).round()
        near = probe + torch.where(found > 0, away.clamp_min(1), away.clamp_max(-1)).to(torch.int64)
        probe = near.clamp(low, high - 1) if tries < _NEAR else (low + high) // 2
    raise AssertionError("unreachable")


def _bisected(excess: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    for _ in range(_ROUNDS):
        if low.device.type == "cpu" and not bool((low < high).any()):
            break
        middle = (low + high) // 2
        low, high = _narrowed(excess(middle), middle, low, high)
    return high


def _narrowed(excess: Tensor, probe: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    fits = excess <= 0
    return torch.where(fits, low, probe + 1).minimum(high), torch.where(fits, probe, high)


def whole_sum(numbers: Tensor, limit: int) -> Tensor:
    """Sums of the whole numbers [B, J], float [B, 1]: exact if at most `limit`, and else greater than that."""
    dtype = torch.float32 if limit < _EXACT else torch.float64  # which takes longer
    return numbers.sum(dim=1, keepdim=True, dtype=dtype)


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
