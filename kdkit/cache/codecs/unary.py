"""Unary codes in the bytes of a row: numbers as so many zeros and a one, read and written for whole batches.

Bit order is that of `bits.py`: the first bit of a stream is the most significant bit of its first byte.

Dimensions: B batch, N bytes, K ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)  # [256, 8]


def zeros_before_ones(stream: Tensor, count: int, out: Tensor | None = None) -> Tensor:
    """How many zeros stand before each of the first `count` ones of each row; arbitrary for ones that a row lacks.

    Args:
        stream: uint8 [B, N], N at least 1.
        count: K.
        out: int32 [B, K], memory for the answer; new memory by default.

    Returns:
        int32 [B, K], from the one before, or from the row's first bit.
    """
    zeros = torch.empty(len(stream), count, dtype=torch.int32, device=stream.device) if out is None else out
    if stream.device.type == "cpu":
        return _scanned(stream, zeros)
    places = _looked_up(stream, count)
    zeros[:, :1] = places[:, :1]
    torch.sub(places[:, 1:], places[:, :-1], out=zeros[:, 1:])
    zeros[:, 1:] -= 1
    return zeros


def places_of(flags: Tensor, count: int) -> Tensor:
    """The places of the first `count` true flags [B, N] of each row, int32 [B, K], 0 where a row has fewer."""
    if flags.device.type == "cpu":
        return _places(flags.numpy(), count)
    rank = torch.where(flags, flags.cumsum(dim=1) - 1, count).clamp_max_(count)
    place = torch.arange(flags.shape[1], dtype=torch.int32, device=flags.device).expand(flags.shape)
    return torch.zeros(len(flags), count + 1, dtype=torch.int32, device=flags.device).scatter_(1, rank, place)[:, :-1]


def _places(flags: np.ndarray[Any, Any], count: int) -> Tensor:
    found = np.zeros((len(flags), count), dtype=np.int32)
    for row, those in zip(found, flags, strict=True):
        places = those.nonzero()[0][:count]
        row[: len(places)] = places
    return torch.from_numpy(found)


def _scanned(stream: Tensor, out: Tensor) -> Tensor:
    """The zeros before each one, written to int32 [B, K]: a CPU scans bits faster than it gathers from tables.

    Row by row, because the caches nearest to a CPU hold the bits of one row.
    """
    for zeros, row in zip(out.numpy(), stream.numpy(), strict=True):
        places = np.unpackbits(row).view(np.bool_).nonzero()[0][: len(zeros)].astype(np.int32)
        found, missing = zeros[: len(places)], zeros[len(places) :]
        found[:1] = places[:1]
        np.subtract(places[1:], places[:-1], out=found[1:])
        found[1:] -= 1
        missing[:] = 0
    return out


def _looked_up(stream: Tensor, count: int) -> Tensor:
    """The same by shapes that follow from those of the arguments, so that no step waits for the device."""
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
