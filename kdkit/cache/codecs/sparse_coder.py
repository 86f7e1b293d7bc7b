"""SparseCoder: the entries of a row that are not zero, as places in Elias-Fano form and levels in unary.

Dimensions: B batch, D numbers of a row, K entries, U bits of the places' upper part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.cache.codecs.bits import BitFields
from kdkit.cache.codecs.raw import from_bytes, to_bytes
from kdkit.cache.codecs.steps import (
    NUM_OFFSETS,
    STEP_BYTES,
    finest_step,
    fit_offsets,
    sizes_of,
    step_bytes,
    step_in,
    step_of,
)
from kdkit.cache.codecs.unary import bytes_with_ones, places_of_ones
from kdkit.errors import ConfigError

_ROUNDING = 0.4  # level n takes sizes from n - 0.4 steps: what is small costs bits and saves little
_MAX_LOW_BITS = 12
_FLAT_BYTES = 4  # of the float32 that a row without entries repeats
_PART = 12  # codes by which a row filled in part is finer than one that fits whole: equal numbers are then at level 1


@dataclass(frozen=True, eq=False)
class SparseCoder:
    """Codes rows whose numbers are mostly zero, or far below the largest."""

    numel: int
    row_bytes: int
    low_bits: int
    """Bits of a place that are stored as they are; the rest is the upper part."""
    signed: bool
    """Whether entries have a sign; otherwise numbers below 0 become 0."""
    offsets: np.ndarray[Any, Any]
    """float32 [3], see `fit_offsets`."""

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """What a cache stores of the fit."""
        return {"sparse": np.array([self.low_bits, self.signed], dtype=np.uint8), "offsets": self.offsets}

    @classmethod
    def load(cls, arrays: dict[str, np.ndarray[Any, Any]], numel: int, row_bytes: int) -> SparseCoder:
        """The coder of stored arrays, whose dtypes and shapes were checked; ConfigError where a value does not fit."""
        low_bits, signed = (int(value) for value in arrays["sparse"])
        coder = cls(numel, row_bytes, low_bits, bool(signed), arrays["offsets"])
        if low_bits > _MAX_LOW_BITS or signed > 1 or coder._upper_bits > 8 * coder._room:
            raise ConfigError(
                f"the compact array 'sparse' is {[low_bits, signed]}, which rows of {row_bytes} bytes rule out"
            )
        return coder

    @classmethod
    def fit(cls, sample: Tensor, row_bytes: int) -> SparseCoder:
        """The coder fitted to rows [R, D]: the split of places that leaves the least error, then the offsets."""
        numel, signed = sample.shape[1], bool((sample < 0).any())
        rows, middle = sample[:256], np.full(NUM_OFFSETS, 0.5 - _ROUNDING, dtype=np.float32)
        coders = [cls(numel, row_bytes, bits, signed, middle) for bits in range(_MAX_LOW_BITS + 1)]
        fitting = [coder for coder in coders if coder._upper_bits + 16 <= 8 * coder._room]
        finest = [float(finest_step(coder._bytes_at(rows), coder._room, rows).float().mean()) for coder in fitting]
        best = fitting[finest.index(min(finest))]
        code = finest_step(best._bytes_at(sample), best._room, sample)
        scaled = best._sizes(sample) / step_of(code)
        return cls(numel, row_bytes, best.low_bits, signed, fit_offsets(scaled, _levels(scaled)))

    @property
    def _head(self) -> int:
        """Bytes of the step and of K."""
        return STEP_BYTES + self._count_bytes

    @property
    def _count_bytes(self) -> int:
        return 2 if self.numel < 1 << 16 else 4

    @property
    def _room(self) -> int:
        return self.row_bytes - self._head

    @property
    def _upper_bits(self) -> int:
        return -(-self.numel // (1 << self.low_bits))

    @property
    def _entry_bits(self) -> int:
        """Bits of an entry outside the stream: the lower part of its place, and its sign."""
        return self.low_bits + self.signed

    @property
    def _most(self) -> int:
        """Entries that a row never exceeds."""
        return max(1, min(self.numel, (8 * self._room - self._upper_bits) // (2 + self._entry_bits)))

    @cached_property
    def _fields(self) -> BitFields | None:
        return BitFields((self._entry_bits,) * self._most) if self._entry_bits else None

    def _offsets_on(self, device: torch.device) -> Tensor:
        return torch.from_numpy(np.concatenate([[0], self.offsets]).astype(np.float32)).to(device)

    def _sizes(self, rows: Tensor) -> Tensor:
        return rows.abs() if self.signed else rows.clamp_min(0)

    def _bytes_at(self, rows: Tensor) -> Any:
        """The function from steps [B, 1] to the bytes after the head that the rows take, [B]."""
        sizes = self._sizes(rows)

        def num_bytes(step: Tensor) -> Tensor:
            levels = _levels(sizes / step)
            count = (levels > 0).sum(dim=1)
            return self._num_bytes(count, levels.double().sum(dim=1))

        return num_bytes

    def _num_bytes(self, count: Tensor, levels: Tensor) -> Tensor:
        """Bytes of streams with `count` entries and that sum of levels: whole ones, as the two parts meet in none."""
        return ((self._upper_bits + count + levels) / 8).ceil() + (count * self._entry_bits / 8).ceil()

    def encode(self, rows: Tensor) -> Tensor:
        """Float32 [B, D] -> uint8 [B, row_bytes]: the best of whole, in part and flat."""
        code = finest_step(self._bytes_at(rows), self._room, rows)
        sizes, offsets = self._sizes(rows), self._offsets_on(rows.device)
        levels = _levels(sizes / step_of(code))
        # A row of many equal numbers has a step at which all fit or none does: then as many as fit are better.
        fine = (code - _PART).clamp_min(0)
        part = _levels(sizes / step_of(fine))
        bits = part + (part > 0) * (1 + self._entry_bits)
        part = part * (bits.double().cumsum(dim=1) + self._upper_bits <= 8 * self._room - 14)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        in_part = _error(part, fine, sizes, offsets, scale) < _error(levels, code, sizes, offsets, scale)
        code, levels = torch.where(in_part, fine, code), torch.where(in_part, part, levels)
        constant = rows.mean(dim=1, keepdim=True)
        kept = torch.where(levels > 0, sizes_of(levels, offsets) * step_of(code) * rows.sign(), 0)
        lost = (((kept - rows) / scale) ** 2).sum(dim=1, keepdim=True)
        is_flat = (((constant - rows) / scale) ** 2).sum(dim=1, keepdim=True) <= lost
        return self._pack(code, (levels * ~is_flat).to(torch.int64), rows.sign() < 0, constant)

    def _pack(self, code: Tensor, levels: Tensor, negative: Tensor, constant: Tensor) -> Tensor:
        rows, kept = len(levels), levels > 0
        count = kept.sum(dim=1, keepdim=True)
        order = torch.arange(self._most, device=levels.device)
        rank = torch.where(kept, kept.cumsum(dim=1) - 1, self._most)
        place = torch.zeros(rows, self._most + 1, dtype=torch.int64, device=levels.device)
        place = place.scatter_(1, rank, torch.arange(self.numel, device=levels.device).expand(rows, -1))[:, :-1]
        end, absent = 8 * self._room, order >= count
        upper = ((place >> self.low_bits) + order).masked_fill(absent, end)
        unary = self._upper_bits + count - 1 + levels.gather(1, place).masked_fill(absent, 0).cumsum(dim=1)
        stream = bytes_with_ones(torch.cat([upper, unary.masked_fill(absent, end)], dim=1), self._room)
        if self._fields is not None:
            low = place & ((1 << self.low_bits) - 1)
            if self.signed:
                low = low * 2 + negative.gather(1, place)
            stream += self._fields.pack(low.masked_fill(absent, 0), self._room).flip(1)
        stream[:, :_FLAT_BYTES] = torch.where(count == 0, to_bytes(constant.float()), stream[:, :_FLAT_BYTES])
        counts = torch.cat([count >> 8 * byte & 255 for byte in range(self._count_bytes)], dim=1).to(torch.uint8)
        return torch.cat([step_bytes(code), counts, stream], dim=1)

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> float32 [B, D]."""
        rows, device = len(payload), payload.device
        count, stream = self._count_in(payload), payload[:, self._head :]
        ones = places_of_ones(stream, 2 * self._most)
        order = torch.arange(self._most, dtype=torch.int32, device=device)
        place = (ones[:, : self._most] - order) << self.low_bits
        ends = ones.gather(1, (count + order).to(torch.int64))
        levels = ends.diff(dim=1, prepend=(self._upper_bits + count - 1)).clamp_(1, 8 * self._room)
        values = sizes_of(levels, self._offsets_on(device)) * step_in(payload)
        if self._fields is not None:
            low = self._fields.unpack(stream.flip(1))
            if self.signed:
                values = torch.where(low % 2 == 1, -values, values)
            place = place + (low >> int(self.signed))
        place = torch.where(order < count, place.clamp(0, self.numel), self.numel)
        decoded = torch.zeros(rows, self.numel + 1, device=device).scatter_(1, place.to(torch.int64), values)
        return torch.where(count == 0, from_bytes(stream[:, :_FLAT_BYTES], torch.float32), decoded[:, :-1])

    def _count_in(self, payload: Tensor) -> Tensor:
        """K of each row, int32 [B, 1]."""
        head = payload[:, STEP_BYTES : self._head].to(torch.int64)
        shift = 8 * torch.arange(self._count_bytes, device=payload.device)
        return (head << shift).sum(dim=1, keepdim=True).clamp_max(self._most).to(torch.int32)


def _levels(scaled: Tensor) -> Tensor:
    return (scaled + _ROUNDING).floor()


def _error(levels: Tensor, code: Tensor, sizes: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    """Squared error of the sizes in units of `scale` [B, 1], [B, 1]."""
    return (((sizes_of(levels, offsets) * step_of(code) - sizes) / scale) ** 2).sum(dim=1, keepdim=True)
