"""One step per row, in powers of two with 16 steps per octave; and whole numbers as the little-endian bytes of a row.

Dimensions: B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

STEP_BYTES = 2
PER_OCTAVE, ONE, _OCTAVES = 16, 2048, 64  # code c is a step of 2**((c - 2048) / 16), from 2**-128 to 2**64
COARSEST = ONE + _OCTAVES * PER_OCTAVE
MAX_SIZE = 1e15  # of a number: squares of rows are finite, and the coarsest step takes it to level 0
_SAMPLED = 2048  # numbers of a row that tell about which step fits


@cache
def steps(device: torch.device) -> Tensor:
    """The step of each code, float32; a table, because powers of two are rounded differently by different devices."""
    codes = np.arange(COARSEST + 1, dtype=np.float64)
    return torch.from_numpy(np.exp2((codes - ONE) / PER_OCTAVE).astype(np.float32)).to(device)


def finest(
    fits: Callable[[Tensor, Tensor, int], Tensor], numbers: Tensor, low: Tensor, high: Tensor, span: int
) -> Tensor:
    """The least code in low..high at which each row fits, int64 [B, 1]; `high` where none below it does.

    On a CPU, where the host need not wait to learn that all rows are found, a part of the numbers says where to look.

    Args:
        fits: (numbers [B, J], codes [B, 1], every) -> whether the rows fit, bool [B, 1], if each number stands for so
            many; a row that fits at one step must fit at all coarser ones.
        numbers: of each row, [B, J].
        low, high: int64 [B, 1].
        span: high - low, at most.
    """
    every = numbers.shape[1] // _SAMPLED if numbers.device.type == "cpu" else 0
    if every < 2:
        return bisect(lambda code: fits(numbers, code, 1), low, high, span)
    sample = numbers[:, ::every].contiguous()
    guess = bisect(lambda code: fits(sample, code, every), low, high, span)
    probe, reach = guess, 0
    while bool((low < high).any()):
        low, high = _narrowed(fits(numbers, probe, 1), probe, low, high)
        reach = max(1, 2 * reach)
        probe = ((low + high) // 2).clamp(guess - reach, guess + reach)
    return high


def bisect(fits: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, span: int) -> Tensor:
    """The least code in low..high at which each row fits, int64 [B, 1], in a number of rounds that follows from `span`."""
    for _ in range(span.bit_length()):
        middle = (low + high) // 2
        low, high = _narrowed(fits(middle), middle, low, high)
    return high


def _narrowed(fits: Tensor, probe: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(fits, low, probe + 1).minimum(high), torch.where(fits, probe, high)


def as_bytes(number: Tensor, count: int) -> Tensor:
    """Integers [B, 1] -> uint8 [B, count], little-endian."""
    return torch.cat([number >> 8 * byte & 255 for byte in range(count)], dim=1).to(torch.uint8)


def as_number(payload: Tensor) -> Tensor:
    """Uint8 [B, count], little-endian -> int64 [B, 1]."""
    shift = 8 * torch.arange(payload.shape[1], device=payload.device)
    return (payload.to(torch.int64) << shift).sum(dim=1, keepdim=True)
