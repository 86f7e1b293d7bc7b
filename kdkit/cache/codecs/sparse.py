"""SparseFeature: features that are mostly zero or small, such as those after a ReLU, in a tenth of float16's bytes.

Dimensions: B batch, D numbers of a row, K entries: the numbers that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
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
    finest,
    flat_value,
    steps,
    whole_sum,
)
from kdkit.cache.codecs.unary import bytes_with_ones, places_of, zeros_before_ones
from kdkit.errors import ConfigError

_FLAT_BYTES = 4
_KEPT, _ROUNDING = 0.65, 0.45  # in steps: smaller numbers cost more bits than they are worth; level n is from n - 0.45
_ABOVE = 1 / 32  # of a step: how far the numbers of level 1 lie above it on average
_MAX_LOW_BITS = 12
_CPU_CHUNK, _GPU_CHUNK = 1 << 20, 1 << 24  # numbers of the rows that are worked on together: a CPU's caches hold them
_CPU_ROWS = 128  # at most: memory for more is requested anew each time


@dataclass(frozen=True)
class SparseFeature(SizedFeature):
    """The numbers that are not near zero: the runs between them in Rice codes, levels in unary, one step per row.

    The step is the finest one whose entries fit into the row's bytes. cache/CODECS.md describes every byte. What is
    lost depends on the features: the build measures and stores it. Features that are not sparse lose much.
    """

    name: ClassVar[str] = "sparse"
    has_signs: bool = False  # whether entries have a sign; rows with numbers below 0 are otherwise not encodable

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.has_signs, bool):
            raise ConfigError(f"has_signs must be true or false, got {self.has_signs!r}")

    def suited_to(self, sample: Tensor) -> Self:
        """This codec, with signs if the sample [B, ...] has numbers below 0."""
        return type(self)(self.shape, self.row_bytes, has_signs=bool((sample < 0).any()))

    def is_encodable(self, values: Tensor) -> Tensor:
        """Which rows of [B, ...] are finite, not beyond 1e15, and, without signs, not below 0; bool [B]."""
        rows = values.flatten(1).float()  # in half precision the limit would be infinity
        return ((rows <= MAX_SIZE) & (rows >= (-MAX_SIZE if self.has_signs else 0))).all(dim=1)

    def nearest(self, values: Tensor) -> Tensor:
        """The values [B, ...], without signs none below 0."""
        return values if self.has_signs else values.clamp_min(0)

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
        """Low bits of a run that are stored as they are: about as many as are shortest if entries are anywhere."""
        enough = (
            bits
            for bits in range(_MAX_LOW_BITS)
            if 4 * self._room * ((4 << bits) + 1) >= self.numel * (bits + self.has_signs + 5)
        )
        return next(enough, _MAX_LOW_BITS)

    @property
    def _field_bits(self) -> int:
        """Bits of an entry's field: the low bits of its run, and its sign."""
        return self.low_bits + self.has_signs

    @cached_property
    def _most(self) -> int:
        """Number of entries that no row exceeds."""
        return max(1, min(self.numel, 8 * self._room // (2 + self._field_bits)))

    @cached_property
    def _fields(self) -> BitFields | None:
        return BitFields((self._field_bits,) * self._most) if self._field_bits else None

    def _chunk_rows(self, device: torch.device) -> int:
        rows, numbers = (_CPU_ROWS, _CPU_CHUNK) if device.type == "cpu" else (_GPU_CHUNK, _GPU_CHUNK)
        return max(1, min(rows, numbers // max(self.numel, self.row_bytes)))

    def encode(self, values: Tensor) -> Tensor:
        """[B, ...] float -> uint8 [B, row_bytes]."""
        self._check(values)
        rows = values.detach().float().flatten(1)
        return torch.cat([self._encode(chunk) for chunk in torch.split(rows, self._chunk_rows(rows.device))])

    def _encode(self, rows: Tensor) -> Tensor:
        sizes = rows.abs()
        code = self._finest(sizes)
        step = steps(rows.device)[code]
        levels = _levels(sizes / step)
        constant = rows.mean(dim=1, keepdim=True, dtype=torch.float64).float()  # exact where all numbers are equal
        # A row of many equal numbers has a step at which all of them fit or none: it may be better flat.
        scale = sizes.amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        lost, flat = (
            parts.div_(scale).square_().sum(dim=1, keepdim=True)
            for parts in (_sizes_of(levels, step).sub_(sizes), rows - constant)
        )
        return self._pack(code, levels.masked_fill_(flat <= lost, 0), rows, constant)

    def _finest(self, sizes: Tensor) -> Tensor:
        """The code of the finest step at which each row fits, int64 [B, 1]."""
        largest = sizes.amax(dim=1, keepdim=True)
        # At twice the largest number no level is above 0; below 1 / (8 * row_bytes) of it, its level alone is too long.
        high = (largest.log2() * PER_OCTAVE + ONE + PER_OCTAVE).ceil().clamp(0, COARSEST).to(torch.int64)
        span = PER_OCTAVE * ((8 * self.row_bytes).bit_length() + 2)

        def excess(code: Tensor, every: int) -> Tensor:
            return self._excess(sizes[:, ::every] / steps(sizes.device)[code], every)

        return finest(excess, 8 * self._room, self.numel, (high - span).clamp_min(0), high)

    def _excess(self, scaled: Tensor, every: int) -> Tensor:
        """Bits that rows of these sizes in steps take beyond their room, [B, 1]; the two parts share no byte."""
        levels = _levels(scaled)
        count, skipped = _count_and_skip(levels > 0, self.low_bits)
        unary = every * (whole_sum(levels, 8 * self._room) + count + skipped)
        return 8 * ((unary / 8).ceil() + (every * count * self._field_bits + 7) // 8 - self._room)

    def _pack(self, code: Tensor, levels: Tensor, rows: Tensor, constant: Tensor) -> Tensor:
        kept = levels > 0
        count = kept.sum(dim=1, keepdim=True)
        most = self._entries(count)
        place, absent = places_of(kept, most).to(torch.int64), torch.arange(most, device=rows.device) >= count
        run = place.diff(dim=1, prepend=torch.full_like(count, -1)) - 1
        widths = torch.stack([(run >> self.low_bits) + 1, levels.gather(1, place).to(torch.int64)], dim=2)
        ones = (widths.flatten(1).cumsum(dim=1) - 1).masked_fill(absent.repeat_interleave(2, dim=1), 8 * self._room)
        stream = bytes_with_ones(ones, self._room)
        if self._fields is not None:
            low = run & ((1 << self.low_bits) - 1)
            if self.has_signs:
                low = low * 2 + (rows.gather(1, place) < 0)
            stream += self._fields.pack(low.masked_fill(absent, 0), self._room).flip(1)
        stream[:, :_FLAT_BYTES] = torch.where(count == 0, to_bytes(constant), stream[:, :_FLAT_BYTES])
        code = torch.where(count == 0, 0, code)
        return torch.cat([as_bytes(code, STEP_BYTES), as_bytes(count, self._count_bytes), stream], dim=1)

    def _entries(self, count: Tensor) -> int:
        """Number of entries that none of these rows exceeds: on a CPU of these, else of any, without waiting."""
        return max([1, *count.flatten().tolist()]) if count.device.type == "cpu" else self._most

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> float32 [B, ...]."""
        check_payload(self, payload)
        decoded = torch.empty(len(payload), self.numel, dtype=torch.float32, device=payload.device)
        size = self._chunk_rows(payload.device)
        for first in range(0, len(payload), size):
            self._decode(payload[first : first + size], decoded[first : first + size])
        return decoded.view(len(payload), *self.shape)

    def _decode(self, payload: Tensor, into: Tensor) -> None:
        device = payload.device
        step = steps(device)[as_number(payload[:, :STEP_BYTES]).clamp_max(COARSEST)]
        count = as_number(payload[:, STEP_BYTES : self._head]).clamp(0, self._most).to(torch.int32)
        stream = payload[:, self._head :]
        most = self._entries(count)
        zeros = zeros_before_ones(stream, 2 * most).view(-1, most, 2)
        run, levels = zeros[:, :, 0] << self.low_bits, zeros[:, :, 1].float().clamp_(0, 8 * self._room) + 1
        values = _sizes_of(levels, step)
        if self._fields is not None:
            low = self._fields.unpack(stream.flip(1), most)
            if self.has_signs:
                values = torch.where(low % 2 == 1, -values, values)
            run = run + (low >> int(self.has_signs))
        place = ((run + 1).cumsum(dim=1) - 1).clamp_(0, self.numel - 1)
        flat = torch.where(count == 0, flat_value(stream[:, :_FLAT_BYTES]), 0.0)
        first = torch.where(count == 0, flat, values[:, :1])  # which entries that a row lacks repeat
        absent = torch.arange(most, device=device) >= count
        into.copy_(flat.expand_as(into))
        into.scatter_(1, torch.where(absent, place[:, :1], place), torch.where(absent, first, values))


def _levels(scaled: Tensor) -> Tensor:
    """Sizes in steps -> levels, float."""
    return F.threshold(scaled, _KEPT, 0).add_(_ROUNDING).floor_()


def _count_and_skip(kept: Tensor, low_bits: int) -> tuple[Tensor, Tensor]:
    """Number of kept numbers of each row [B, D], and the sum of their runs shifted by `low_bits`; integers [B, 1]."""
    if kept.device.type == "cpu":
        flags = F.pad(kept, (1, 0), value=True)  # before each row, so that no run goes on into the next one
        true = flags.view(-1).numpy().nonzero()[0]
        start = np.searchsorted(true, flags.shape[1] * np.arange(len(kept)))
        skipped = true - 1
        skipped[1:] -= true[:-1]
        skipped >>= low_bits
        skipped[start] = 0
        sums = np.diff(start, append=len(true)) - 1, np.add.reduceat(skipped, start)
        return torch.from_numpy(sums[0])[:, None], torch.from_numpy(sums[1])[:, None]
    place = torch.arange(kept.shape[1], dtype=torch.int32, device=kept.device)
    before = torch.where(kept, place, -1).cummax(dim=1).values
    runs = place - 1 - F.pad(before[:, :-1], (1, 0), value=-1)
    return kept.sum(dim=1, keepdim=True), ((runs >> low_bits) * kept).sum(dim=1, keepdim=True)


def _sizes_of(levels: Tensor, step: Tensor) -> Tensor:
    """The sizes that levels [B, ...] mean at steps [B, 1]; 0 for level 0."""
    return (levels + _ABOVE * (levels == 1)) * step
