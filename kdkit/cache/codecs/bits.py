"""Fields of fixed width, packed into the bytes of a row without gaps.

Bit order: the first bit of a row is the most significant bit of its first byte, and a field's first bit is its most
significant one, so `numpy.unpackbits(row)` lists the bits in the order of the fields.

Dimensions: B batch, F fields, N bytes, W words of 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_WORD = 32  # bits of the words that a row is packed in: a field begins in one and ends in it or in the next


class _Geometry(NamedTuple):
    """Position of each field, on one device."""

    first: Tensor  # int64 [F], first byte
    shift: Tensor  # [F], to the right, inside the window of bytes that begins there
    mask: Tensor  # [F]
    lift: Tensor  # int64 [F], to the left, inside the two words of which the field begins in the first
    begun: Tensor  # int64 [W], number of fields that begin in each word or before it


@dataclass(frozen=True)
class BitFields:
    """Consecutive fields of `widths` bits (1 to 25 each), from a row's first bit on."""

    widths: tuple[int, ...]
    _on: dict[torch.device, _Geometry] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def num_bytes(self) -> int:
        """The minimum number of bytes that hold all fields."""
        return (sum(self.widths) + 7) // 8

    @cached_property
    def window(self) -> int:
        """Number of bytes that any of the fields spans at most, whatever bit it starts at."""
        return (max(self.widths) + 7 + 7) // 8

    def pack(self, values: Tensor, row_bytes: int) -> Tensor:
        """[B, F] integers, or the first of them, each below 2**width -> uint8 [B, row_bytes], 0 after the last."""
        geometry, count = self._geometry(values.device), values.shape[1]
        until = F.pad((values.to(torch.int64) << geometry.lift[:count]).cumsum(dim=1), (1, 0))
        # No two fields share a bit, so that a sum never carries; and int64 wraps around, so that differences are exact.
        begun = geometry.begun.clamp_max(count).expand(len(values), -1)
        pairs = until.gather(1, begun).diff(dim=1, prepend=until[:, :1])
        words = (pairs >> _WORD) + F.pad(pairs, (1, 0))[:, :-1]
        parts = torch.stack([words >> shift & 255 for shift in range(_WORD - 8, -1, -8)], dim=2)
        found = parts.to(torch.uint8).flatten(1)
        return F.pad(found, (0, row_bytes - found.shape[1]))

    def unpack(self, payload: Tensor, fields: int | None = None) -> Tensor:
        """Uint8 [B, N] -> integers [B, F], the first `fields` or all."""
        geometry, count = self._geometry(payload.device), self.num_bytes
        padded = F.pad(payload[:, :count], (0, self.window - 1)).to(geometry.mask.dtype)
        words = padded[:, :count]
        for i in range(1, self.window):  # the window that begins at each byte, as one number
            words = (words << 8) | padded[:, i : count + i]
        found = words.gather(1, geometry.first[:fields].expand(len(words), -1))  # quicker than `index_select` on a CPU
        return found.bitwise_right_shift_(geometry.shift[:fields]).bitwise_and_(geometry.mask[:fields])

    def _geometry(self, device: torch.device) -> _Geometry:
        if device not in self._on:
            widths = np.array(self.widths, dtype=np.int64)
            first_bit = np.cumsum(widths) - widths
            shift = 8 * self.window - first_bit % 8 - widths
            dtype = torch.int32 if self.window < 4 else torch.int64
            begun = np.searchsorted(first_bit, _WORD * np.arange(1, -(-int(widths.sum()) // _WORD) + 1))
            self._on[device] = _Geometry(
                torch.from_numpy(first_bit // 8).to(device),
                torch.from_numpy(shift).to(device, dtype),
                torch.from_numpy((1 << widths) - 1).to(device, dtype),
                torch.from_numpy(2 * _WORD - first_bit % _WORD - widths).to(device),
                torch.from_numpy(begun).to(device),
            )
        return self._on[device]

    def __getstate__(self) -> dict[str, Any]:
        return {"widths": self.widths, "_on": {}}  # a pickle goes to another process, which uploads to its own devices

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def index_width(count: int) -> int:
    """Bits that hold any index below `count`; at least 1."""
    return max(1, (count - 1).bit_length())
