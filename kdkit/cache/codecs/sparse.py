"""SparseFeature: features that are mostly zero or small, such as those after a ReLU, in a tenth of float16's bytes.

Dimensions: B batch, D numbers of a row, K entries: the numbers that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from kdkit.cache.codecs.base import check_payload
from kdkit.cache.codecs.bits import BitFields
from kdkit.cache.codecs.feature import SizedFeature
from kdkit.cache.codecs.raw import to_bytes
from kdkit.cache.codecs.steps import (
    COARSEST,
    MAX_SIZE,
    ONE,
    PER_OCTAVE,
    STEP_BYTES,
    as_bytes,
    as_number,
    flat_value,
    steps,
)
from kdkit.cache.codecs.unary import bytes_with_ones, places_of_ones
from kdkit.errors import ConfigError

_FLAT_BYTES = 4
_KEPT, _ROUNDING = 0.65, 0.45  # in steps: smaller numbers cost more bits than they are worth; level n is from n - 0.45
_ABOVE = 1 / 32  # of a step: how far the numbers of level 1 lie above it on average
_ENTRY_BITS = 2.5  # of an entry, apart from the low bits of its place: one of the upper part, and its level's
_MAX_LOW_BITS = 12
_CHUNK_NUMBERS = 1 << 20  # of the rows that are encoded together, which bounds temporaries and keeps them in the cache


@dataclass(frozen=True)
class SparseFeature(SizedFeature):
    """The numbers that are not near zero: places in Elias-Fano form, levels in unary, one step per row.

    The step is the finest one whose entries fit into the row's bytes. cache/CODECS.md describes every byte. What is
    lost depends on the features: the build measures and stores it. Features that are not sparse lose much.
    """

    name: ClassVar[str] = "sparse"
    signed: bool = False  # whether entries have a sign; rows with numbers below 0 are otherwise not encodable

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.signed, bool):
            raise ConfigError(f"signed must be true or false, got {self.signed!r}")

    def suited_to(self, sample: Tensor) -> Self:
        """This codec, with signs if the sample [B, ...] has numbers below 0."""
        return type(self)(self.shape, self.row_bytes, signed=bool((sample < 0).any()))

    def is_encodable(self, values: Tensor) -> Tensor:
        """Which rows of [B, ...] are finite, not beyond 1e15, and, without signs, not below 0; bool [B]."""
        rows = values.flatten(1).float()  # in half precision the limit would be infinity
        return ((rows <= MAX_SIZE) & (rows >= (-MAX_SIZE if self.signed else 0))).all(dim=1)

    def nearest(self, values: Tensor) -> Tensor:
        """The values [B, ...], without signs none below 0."""
        return values if self.signed else values.clamp_min(0)

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

    @cached_property
    def low_bits(self) -> int:
        """Low bits of a place that are stored as they are, the number that leaves room for the most entries."""

        def num_entries(bits: int) -> float:
            return (8 * self._room - self._upper(bits)) / (bits + self.signed + _ENTRY_BITS)

        return max(range(_MAX_LOW_BITS + 1), key=num_entries)

    def _upper(self, low_bits: int) -> int:
        return -(-self.numel // (1 << low_bits))

    @cached_property
    def _upper_bits(self) -> int:
        """Zeros in the upper part of the places."""
        return self._upper(self.low_bits)

    @property
    def _field_bits(self) -> int:
        """Bits of an entry's field: the low bits of its place, and its sign."""
        return self.low_bits + self.signed

    @cached_property
    def _most(self) -> int:
        """Number of entries that no row exceeds."""
        return max(1, min(self.numel, (8 * self._room - self._upper_bits) // (2 + self._field_bits)))

    @cached_property
    def _fields(self) -> BitFields | None:
        return BitFields((self._field_bits,) * self._most) if self._field_bits else None

    def encode(self, values: Tensor) -> Tensor:
        """[B, ...] float -> uint8 [B, row_bytes]."""
        self._check(values)
        rows, largest = values.detach().float().flatten(1), max(self.numel, self.row_bytes)
        return torch.cat([self._encode(chunk) for chunk in torch.split(rows, max(1, _CHUNK_NUMBERS // largest))])

    def _encode(self, rows: Tensor) -> Tensor:
        sizes = rows.abs()
        code = self._finest(sizes)
        step = steps(rows.device)[code]
        levels = _levels(sizes / step)
        constant = rows.mean(dim=1, keepdim=True, dtype=torch.float64).float()  # exact where all numbers are equal
        # A row of many equal numbers has a step at which all of them fit or none: it may be better flat.
        scale = sizes.amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        lost = ((_sizes_of(levels, step) - sizes) / scale).square().sum(dim=1, keepdim=True, dtype=torch.float64)
        is_flat = ((rows - constant) / scale).square().sum(dim=1, keepdim=True, dtype=torch.float64) <= lost
        return self._pack(code, (levels * ~is_flat).to(torch.int64), rows < 0, constant)

    def _finest(self, sizes: Tensor) -> Tensor:
        """The code of the finest step at which each row fits, int64 [B, 1], by bisection."""
        largest = sizes.amax(dim=1, keepdim=True)
        # At twice the largest number no level is above 0; below 1 / (8 * row_bytes) of it, its level alone is too long.
        high = (largest.log2() * PER_OCTAVE + ONE + PER_OCTAVE).ceil().clamp(0, COARSEST).to(torch.int64)
        span = PER_OCTAVE * ((8 * self.row_bytes).bit_length() + 2)
        low = (high - span).clamp_min(0)
        table = steps(sizes.device)
        for _ in range(span.bit_length()):
            middle = (low + high) // 2
            fits = self._fits(_levels(sizes / table[middle]))
            low, high = torch.where(fits, low, middle + 1).minimum(high), torch.where(fits, middle, high)
        return high

    def _fits(self, levels: Tensor) -> Tensor:
        """Whether rows of these levels [B, D] fit, bool [B, 1]: in whole bytes, as the two parts share none."""
        count = (levels > 0).sum(dim=1, keepdim=True)
        unary = self._upper_bits + count + levels.sum(dim=1, keepdim=True, dtype=torch.float64)
        return (unary / 8).ceil() + (count * self._field_bits + 7) // 8 <= self._room

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
        stream[:, :_FLAT_BYTES] = torch.where(count == 0, to_bytes(constant), stream[:, :_FLAT_BYTES])
        code = torch.where(count == 0, 0, code)
        return torch.cat([as_bytes(code, STEP_BYTES), as_bytes(count, self._count_bytes), stream], dim=1)

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> float32 [B, ...]."""
        check_payload(self, payload)
        rows, device = len(payload), payload.device
        step = steps(device)[as_number(payload[:, :STEP_BYTES]).clamp_max(COARSEST)]
        count = as_number(payload[:, STEP_BYTES : self._head]).clamp(0, self._most).to(torch.int32)
        stream = payload[:, self._head :]
        ones = places_of_ones(stream, 2 * self._most)
        order = torch.arange(self._most, dtype=torch.int32, device=device)
        place = (ones[:, : self._most] - order) << self.low_bits
        ends = ones.gather(1, (count + order).to(torch.int64))
        levels = ends.diff(dim=1, prepend=(self._upper_bits + count - 1)).clamp_(1, 8 * self._room)
        values = _sizes_of(levels, step)
        if self._fields is not None:
            low = self._fields.unpack(stream.flip(1))
            if self.signed:
                values = torch.where(low % 2 == 1, -values, values)
            place = place + (low >> int(self.signed))
        place = torch.where(order < count, place.clamp(0, self.numel), self.numel)
        decoded = torch.zeros(rows, self.numel + 1, device=device).scatter_(1, place.to(torch.int64), values)
        flat = flat_value(stream[:, :_FLAT_BYTES])
        return torch.where(count == 0, flat, decoded[:, :-1]).view(rows, *self.shape)


def _levels(scaled: Tensor) -> Tensor:
    """Sizes in steps -> levels, float."""
    return (scaled + _ROUNDING).floor_() * (scaled >= _KEPT)


def _sizes_of(levels: Tensor, step: Tensor) -> Tensor:
    """The sizes that levels [B, ...] mean at steps [B, 1]; 0 for level 0."""
    return (levels + _ABOVE * (levels == 1)) * step
