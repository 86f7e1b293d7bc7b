"""SparseFeature: features that are mostly zero or small, such as those after a ReLU, in a tenth of float16's bytes.

Dimensions: B batch, D numbers of a row, K entries: the numbers that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from kdkit.cache.codecs.base import check_payload
from kdkit.cache.codecs.bits import BitFields
from kdkit.cache.codecs.feature import SizedFeature
from kdkit.cache.codecs.raw import from_bytes, to_bytes
from kdkit.cache.codecs.steps import (
    COARSEST,
    MAX_SIZE,
    ONE,
    PER_OCTAVE,
    STEP_BYTES,
    as_bytes,
    as_number,
    finest,
    steps,
)
from kdkit.cache.codecs.unary import bytes_with_ones, places_of_ones
from kdkit.errors import ConfigError

_FLAT_BYTES = 4
_KEPT, _ROUNDING = 0.65, 0.45  # in steps: smaller numbers cost more bits than they are worth; level n is from n - 0.45
_ABOVE = 1 / 32  # of a step: how far the numbers of level 1 lie above it on average
_MAX_LOW_BITS = 12
_CPU_CHUNK, _GPU_CHUNK = 1 << 17, 1 << 24  # numbers of the rows that are worked on together, as a CPU's caches hold


@dataclass(frozen=True)
class SparseFeature(SizedFeature):
    """The numbers that are not near zero: the runs between them in Rice codes, levels in unary, one step per row.

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
        rows = values.flatten(1)
        return ((rows <= MAX_SIZE) & (rows >= (-MAX_SIZE if self.signed else 0))).all(dim=1)

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
            if 4 * self._room * ((4 << bits) + 1) >= self.numel * (bits + self.signed + 4)
        )
        return next(enough, _MAX_LOW_BITS)

    @property
    def _field_bits(self) -> int:
        """Bits of an entry's field: the low bits of its run, and its sign."""
        return self.low_bits + self.signed

    @cached_property
    def _most(self) -> int:
        """Number of entries that no row exceeds."""
        return max(1, min(self.numel, 8 * self._room // (2 + self._field_bits)))

    @cached_property
    def _fields(self) -> BitFields | None:
        return BitFields((self._field_bits,) * self._most) if self._field_bits else None

    def _chunk_rows(self, device: torch.device) -> int:
        return max(1, (_CPU_CHUNK if device.type == "cpu" else _GPU_CHUNK) // self.numel)

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
        lost = ((_sizes_of(levels, step) - sizes) / scale).square().sum(dim=1, keepdim=True, dtype=torch.float64)
        is_flat = ((rows - constant) / scale).square().sum(dim=1, keepdim=True, dtype=torch.float64) <= lost
        return self._pack(code, (levels * ~is_flat).to(torch.int64), rows < 0, constant)

    def _finest(self, sizes: Tensor) -> Tensor:
        """The code of the finest step at which each row fits, int64 [B, 1]."""
        largest = sizes.amax(dim=1, keepdim=True)
        # At twice the largest number no level is above 0; below 1 / (8 * row_bytes) of it, its level alone is too long.
        high = (largest.log2() * PER_OCTAVE + ONE + PER_OCTAVE).ceil().clamp(0, COARSEST).to(torch.int64)
        span = PER_OCTAVE * ((8 * self.row_bytes).bit_length() + 2)
        return finest(self._fits, sizes, (high - span).clamp_min(0), high, span)

    def _fits(self, sizes: Tensor, code: Tensor, every: int) -> Tensor:
        """Whether rows of these sizes fit, bool [B, 1]: in whole bytes, as the two parts share none."""
        scaled = sizes / steps(sizes.device)[code]
        kept = scaled >= _KEPT
        count = every * kept.sum(dim=1, keepdim=True)
        levels = every * _levels(scaled).sum(dim=1, keepdim=True, dtype=torch.float64)
        runs = every * ((_runs(kept) >> self.low_bits) * kept).sum(dim=1, keepdim=True)
        return ((runs + count + levels) / 8).ceil() + (count * self._field_bits + 7) // 8 <= self._room

    def _pack(self, code: Tensor, levels: Tensor, negative: Tensor, constant: Tensor) -> Tensor:
        rows, kept = len(levels), levels > 0
        count = kept.sum(dim=1, keepdim=True)
        order = torch.arange(self._most, device=levels.device)
        rank = torch.where(kept, kept.cumsum(dim=1) - 1, self._most)
        place = torch.zeros(rows, self._most + 1, dtype=torch.int64, device=levels.device)
        place = place.scatter_(1, rank, torch.arange(self.numel, device=levels.device).expand(rows, -1))[:, :-1]
        absent = order >= count
        run = place.diff(dim=1, prepend=torch.full_like(count, -1)) - 1
        widths = torch.stack([(run >> self.low_bits) + 1, levels.gather(1, place)], dim=2)
        ones = (widths.flatten(1).cumsum(dim=1) - 1).masked_fill(absent.repeat_interleave(2, dim=1), 8 * self._room)
        stream = bytes_with_ones(ones, self._room)
        if self._fields is not None:
            low = run & ((1 << self.low_bits) - 1)
            if self.signed:
                low = low * 2 + negative.gather(1, place)
            stream += self._fields.pack(low.masked_fill(absent, 0), self._room).flip(1)
        stream[:, :_FLAT_BYTES] = torch.where(count == 0, to_bytes(constant), stream[:, :_FLAT_BYTES])
        code = torch.where(count == 0, 0, code)
        return torch.cat([as_bytes(code, STEP_BYTES), as_bytes(count, self._count_bytes), stream], dim=1)

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> float32 [B, ...]."""
        check_payload(self, payload)
        decoded = torch.empty(len(payload), self.numel, device=payload.device)
        size = self._chunk_rows(payload.device)
        for first in range(0, len(payload), size):
            decoded[first : first + size] = self._decode(payload[first : first + size])
        return decoded.view(len(payload), *self.shape)

    def _decode(self, payload: Tensor) -> Tensor:
        device = payload.device
        step = steps(device)[as_number(payload[:, :STEP_BYTES]).clamp_max(COARSEST)]
        count = as_number(payload[:, STEP_BYTES : self._head]).clamp(0, self._most).to(torch.int32)
        stream = payload[:, self._head :]
        most = max(1, *count.flatten().tolist()) if device.type == "cpu" else self._most
        widths = places_of_ones(stream, 2 * most).diff(dim=1, prepend=torch.full_like(count, -1)).view(-1, most, 2)
        run, levels = (widths[:, :, 0] - 1) << self.low_bits, widths[:, :, 1]
        values = _sizes_of(levels.clamp(1, 8 * self._room), step)
        if self._fields is not None:
            low = self._fields.unpack(stream.flip(1))[:, :most]
            if self.signed:
                values = torch.where(low % 2 == 1, -values, values)
            run = run + (low >> int(self.signed))
        place = (run + 1).cumsum(dim=1) - 1
        absent = torch.arange(most, device=device) >= count
        place = place.clamp(0, self.numel).masked_fill(absent, self.numel)
        flat = torch.where(count == 0, from_bytes(stream[:, :_FLAT_BYTES], torch.float32), 0.0)
        return flat.repeat(1, self.numel + 1).scatter_(1, place, values)[:, :-1]


def _levels(scaled: Tensor) -> Tensor:
    """Sizes in steps -> levels, float."""
    return (scaled + _ROUNDING).floor_() * (scaled >= _KEPT)


def _runs(kept: Tensor) -> Tensor:
    """How many numbers stand between each number and the kept one before it, int32 [B, D]."""
    place = torch.arange(kept.shape[1], dtype=torch.int32, device=kept.device)
    before = torch.where(kept, place, -1).cummax(dim=1).values
    return place - 1 - F.pad(before[:, :-1], (1, 0), value=-1)


def _sizes_of(levels: Tensor, step: Tensor) -> Tensor:
    """The sizes that levels [B, ...] mean at steps [B, 1]; 0 for level 0."""
    return (levels + _ABOVE * (levels == 1)) * step
