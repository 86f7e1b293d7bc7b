"""Fields of fixed width, packed into the bytes of a row without gaps.

Bit order: the first bit of a row is the most significant bit of its first byte, and a field's first bit is its most
significant one, so `numpy.unpackbits(row)` lists the bits in the order of the fields.

Dimensions: B batch, F fields, N bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class _Geometry(NamedTuple):
    """Position of each field; [F, 1] each, on one device."""

    first: Tensor  # first byte
    shift: Tensor  # to the right, inside the window of bytes that begins there
    mask: Tensor


@dataclass(frozen=True)
class BitFields:
    """Consecutive fields of `widths` bits (1 to 25 each), from a row's first bit on."""

    widths: tuple[int, ...]
    _on: dict[torch.device, _Geometry] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_bytes(self) -> int:
        """The minimum number of bytes that hold all fields."""
        return (sum(self.widths) + 7) // 8

    @property
    def window(self) -> int:
        """Number of bytes that any of the fields spans at most, whatever bit it starts at."""
        return (max(self.widths) + 7 + 7) // 8

    def pack(self, values: Tensor, row_bytes: int) -> Tensor:
        """[B, F] integers, each below 2**width -> uint8 [B, row_bytes], 0 after the last field."""
        geometry = self._geometry(values.device)
        shifted = values.to(torch.int64) << geometry.shift.T.to(torch.int64)
        width = row_bytes + self.window
        rows = torch.zeros(len(values) * width, dtype=torch.int64, device=values.device)
        place = (geometry.first + width * torch.arange(len(values), device=values.device)[:, None]).flatten()
        for i in range(self.window):  # no two fields share a bit, so adding never carries; flat, as 2-D is slow on CPUs
            rows.index_add_(0, place + i, ((shifted >> 8 * (self.window - 1 - i)) & 0xFF).flatten())
        return rows.view(len(values), width)[:, :row_bytes].to(torch.uint8)

    def unpack(self, payload: Tensor) -> Tensor:
        """Uint8 [B, N] -> integers [B, F], a transposed view: because gathering whole rows is quicker."""
        geometry = self._geometry(payload.device)
        columns = F.pad(payload[:, : self.num_bytes], (0, self.window - 1)).T.to(geometry.mask.dtype)
        words = columns[: self.num_bytes]
        for i in range(1, self.window):  # the window that begins at each byte, as one number
            words = (words << 8) | columns[i : self.num_bytes + i]
        return words.index_select(0, geometry.first).bitwise_right_shift_(geometry.shift).bitwise_and_(geometry.mask).T

    def _geometry(self, device: torch.device) -> _Geometry:
        if device not in self._on:
            widths = np.array(self.widths, dtype=np.int64)
            first_bit = np.cumsum(widths) - widths
            shift = 8 * self.window - first_bit % 8 - widths
            dtype = torch.int32 if self.window < 4 else torch.int64
            shift_mask = (torch.from_numpy(a).to(device, dtype)[:, None] for a in (shift, (1 << widths) - 1))
            self._on[device] = _Geometry(torch.from_numpy(first_bit // 8).to(device), *shift_mask)
        return self._on[device]

    def __getstate__(self) -> dict[str, Any]:
        return {"widths": self.widths, "_on": {}}  # a pickle goes to another process, which uploads to its own devices

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def index_width(count: int) -> int:
    """Bits that hold any index below `count`; at least 1."""
    return max(1, (count - 1).bit_length())
