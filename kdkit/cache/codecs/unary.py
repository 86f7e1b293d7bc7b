"""Unary codes in the bytes of a row: the places of the ones of a bit stream, found and set for whole batches.

Bit order is that of `bits.py`: the first bit of a stream is the most significant bit of its first byte.

Dimensions: B batch, N bytes, K ones.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)  # [256, 8]


def places_of_ones(stream: Tensor, count: int) -> Tensor:
    """The places of the first `count` ones of each row, ascending; those that a damaged row lacks are arbitrary.

    Args:
        stream: uint8 [B, N], N at least 1.
        count: K.

    Returns:
        int32 [B, K], bits from the row's first.
    """
    return (_scanned if stream.device.type == "cpu" else _looked_up)(stream, count)


def _scanned(stream: Tensor, count: int) -> Tensor:
    """`places_of_ones` row by row: a CPU scans bits faster than it gathers from tables."""
    found = np.zeros((len(stream), count), dtype=np.int32)
    for row, bits in zip(found, np.unpackbits(stream.numpy(), axis=1).view(np.bool_), strict=True):
        ones = bits.nonzero()[0][:count]
        row[: len(ones)] = ones
    return torch.from_numpy(found)


def _looked_up(stream: Tensor, count: int) -> Tensor:
    """`places_of_ones` by shapes that follow from those of the arguments, so that no step waits for the device."""
    rows, num_bytes = stream.shape
    ones_in, place_in = _tables(stream.device)
    value = stream.to(torch.int32)
    ones = ones_in[value]
    until = ones.cumsum(1, dtype=torch.int32)
    taken = until.clamp_max(count)
    taken[:, -1] = count
    counts = taken.diff(dim=1, prepend=torch.zeros_like(taken[:, :1]))
    # The n-th one of a row is in byte i as its one number n - before[i]: `base` looks both up at once.
    base = (value * 8 - (until - ones)).flatten()
    first = 8 * torch.arange(num_bytes, dtype=torch.int32, device=stream.device).repeat(rows)
    byte = torch.repeat_interleave(counts.flatten(), output_size=rows * count)
    rank = torch.arange(count, dtype=torch.int32, device=stream.device)
    inside = (base.index_select(0, byte).view(rows, count) + rank).clamp_(0, 256 * 8 - 1)
    return place_in.index_select(0, inside.flatten()).add_(first.index_select(0, byte)).view(rows, count)


def bytes_with_ones(places: Tensor, num_bytes: int) -> Tensor:
    """Uint8 [B, N] whose bits are 1 at `places` [B, K], each once, and else 0; places beyond the end are left out."""
    bits = torch.zeros(len(places), 8 * num_bytes + 1, dtype=torch.uint8, device=places.device)
    bits = bits.scatter_(1, places.to(torch.int64).clamp(0, 8 * num_bytes), 1)[:, :-1]
    if places.device.type == "cpu":
        return torch.from_numpy(np.packbits(bits.numpy(), axis=1))
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=places.device)
    return (bits.view(len(places), num_bytes, 8) << shifts).sum(dim=2, dtype=torch.uint8)


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Number of ones of each byte, int32 [256], and the place of its one number r, int32 [256 * 8]."""
    places = np.zeros((256, 8), dtype=np.int32)
    for value, bits in enumerate(_BITS):
        found = np.flatnonzero(bits)
        places[value, : len(found)] = found
    ones = _BITS.sum(axis=1, dtype=np.int32)
    return torch.from_numpy(ones).to(device), torch.from_numpy(places.reshape(-1)).to(device)
