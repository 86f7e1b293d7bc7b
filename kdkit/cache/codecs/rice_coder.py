"""RiceCoder: a transform that packs a row's energy into few coefficients, each in a Rice code of its own width.

Dimensions: B batch, R rows of a sample, C channels, N positions, J kept coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdkit.cache.codecs.bits import BitFields
from kdkit.cache.codecs.steps import STEP_BYTES, finest_step, fit_offsets, sizes_of, step_bytes, step_in, step_of
from kdkit.cache.codecs.transform import FeatureTransform, fit_transform
from kdkit.cache.codecs.unary import bytes_with_ones, places_of_ones
from kdkit.errors import ConfigError

_ROUNDING = 0.42  # level n takes sizes from n - 0.42 steps
MAX_LOW_BITS = 12
_DROPPED = 255  # in `rice`: the coefficient is not stored
_WORTH = 0.14  # squared steps of error that a bit must save, at least, for a coefficient to be kept
_SEARCH_NUMBERS = 1 << 22  # of the sample that the search for widths looks at
_SEARCH_STEPS = 14


class _Kept(NamedTuple):
    """The kept coefficients on one device."""

    index: Tensor  # int64 [J], ascending
    power: Tensor  # float32 [J], 2 to the number of low bits
    offsets: Tensor  # float32 [1 + 3]
    coded: Tensor  # int64, those of the J that have low bits


@dataclass(frozen=True, eq=False)
class RiceCoder:
    """Codes dense rows: vectors, tokens and maps."""

    transform: FeatureTransform
    row_bytes: int
    rice: np.ndarray[Any, Any]
    """uint8 [numel]: low bits of each coefficient's Rice code; 255: it is not stored and decodes to 0."""
    offsets: np.ndarray[Any, Any]
    """float32 [3], see `fit_offsets`."""

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """What a cache stores of the fit."""
        return {**self.transform.arrays, "rice": self.rice, "offsets": self.offsets}

    def check(self) -> RiceCoder:
        """This coder; ConfigError if a stored width is out of range or a row has no room for the coefficients."""
        kept = self.rice[self.rice != _DROPPED]
        if kept.max(initial=0) > MAX_LOW_BITS or len(kept) > 8 * self._stream_bytes:
            raise ConfigError(
                f"the compact array 'rice' keeps {len(kept)} numbers, which {self.row_bytes} bytes cannot hold"
            )
        return self

    @classmethod
    def fit(cls, sample: Tensor, row_bytes: int) -> RiceCoder:
        """The coder fitted to rows [R, *shape], float32 on the CPU."""
        transform = fit_transform(sample)
        rows = sample[: max(16, _SEARCH_NUMBERS // transform.numel)]
        coefficients = transform.forward(rows)
        step, rice = _search_widths(coefficients, 8 * (row_bytes - STEP_BYTES) - 7)
        coder = cls(transform, row_bytes, rice, np.zeros(3, dtype=np.float32))
        kept = coefficients[:, coder._on(rows.device).index]
        scaled = kept.abs() / step_of(coder._step_code(kept))
        return cls(transform, row_bytes, rice, fit_offsets(scaled, _levels(scaled)))

    @cached_property
    def _widths(self) -> tuple[int, ...]:
        """Low bits of the kept coefficients that have any."""
        return tuple(int(bits) for bits in self.rice if bits not in (0, _DROPPED))

    @cached_property
    def _fields(self) -> BitFields | None:
        return BitFields(self._widths) if self._widths else None

    @property
    def _low_bytes(self) -> int:
        return -(-sum(self._widths) // 8)

    @property
    def _stream_bytes(self) -> int:
        return self.row_bytes - STEP_BYTES - self._low_bytes

    def _on(self, device: torch.device) -> _Kept:
        index = np.flatnonzero(self.rice != _DROPPED)
        bits = self.rice[index]
        arrays = (index, np.exp2(bits).astype(np.float32), np.concatenate([[0], self.offsets]).astype(np.float32))
        tensors = [torch.from_numpy(array).to(device) for array in (*arrays, np.flatnonzero(bits))]
        return _Kept(*tensors)

    def _step_code(self, kept: Tensor) -> Tensor:
        """The code of the finest step at which the kept coefficients [B, J] fit, [B, 1]."""
        power = self._on(kept.device).power

        def num_bits(step: Tensor) -> Tensor:
            return (_codes(kept / step) / power).floor().double().sum(dim=1) + kept.shape[1]

        return finest_step(num_bits, 8 * self._stream_bytes, kept)

    def encode(self, rows: Tensor) -> Tensor:
        """Float32 [B, *shape] -> uint8 [B, row_bytes]."""
        tables = self._on(rows.device)
        kept = self.transform.forward(rows)[:, tables.index]
        code = self._step_code(kept)
        codes = _codes(kept / step_of(code))
        high = (codes / tables.power).floor()
        places = (high.to(torch.int64) + 1).cumsum(dim=1) - 1
        parts = [step_bytes(code)]
        if self._fields is not None:
            low = (codes - high * tables.power)[:, tables.coded]
            parts.append(self._fields.pack(low, self._low_bytes))
        return torch.cat([*parts, bytes_with_ones(places, self._stream_bytes)], dim=1)

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> float32 [B, *shape]."""
        tables, rows = self._on(payload.device), len(payload)
        coefficients = torch.zeros(rows, self.transform.numel, device=payload.device)
        if len(tables.index):
            places = places_of_ones(payload[:, STEP_BYTES + self._low_bytes :], len(tables.index))
            high = places.diff(dim=1, prepend=torch.full_like(places[:, :1], -1)).sub_(1).clamp_min_(0)
            codes = high * tables.power
            if self._fields is not None:
                low = self._fields.unpack(payload[:, STEP_BYTES:])
                codes.index_add_(1, tables.coded, low.float())
            levels = ((codes + 1) / 2).floor()
            sign = 4 * (levels - codes / 2) - 1  # an odd code is positive: 2 n - 1 for n, 2 n for -n
            coefficients[:, tables.index] = sizes_of(levels, tables.offsets) * step_in(payload) * sign
        return self.transform.inverse(coefficients)


def _levels(scaled: Tensor) -> Tensor:
    return (scaled + _ROUNDING).floor()


def _codes(scaled: Tensor) -> Tensor:
    """Coefficients in steps -> their codes, float: 0 for 0, 2 n - 1 for level n, 2 n for level -n."""
    levels = _levels(scaled.abs())
    return (2 * levels - (scaled > 0).float()).clamp_min(0)


def _search_widths(coefficients: Tensor, budget: int) -> tuple[float, np.ndarray[Any, Any]]:
    """The step at which the sample [R, numel] takes `budget` bits per row on average, and the widths there."""
    largest = float(coefficients.abs().max())
    if largest == 0:
        return 1.0, np.full(coefficients.shape[1], _DROPPED, dtype=np.uint8)
    low, high = math.log2(largest) - 40, math.log2(largest) + 2
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        bits, _ = _widths_at(coefficients, 2**middle)
        low, high = (low, middle) if bits <= budget else (middle, high)
    return 2**high, _widths_at(coefficients, 2**high)[1]


def _widths_at(coefficients: Tensor, step: float) -> tuple[float, np.ndarray[Any, Any]]:
    """Bits per row, and the low bits that cost least, of each coefficient that is worth its bits at this step."""
    scaled = coefficients / step
    codes = _codes(scaled)
    costs = [bits + 1 + (codes * 2.0**-bits).floor().mean(dim=0) for bits in range(MAX_LOW_BITS + 1)]
    cost, width = torch.stack(costs).min(dim=0)
    size = scaled.abs()
    saved = (size**2 - (size - _levels(size)) ** 2).mean(dim=0)  # squared steps
    kept = saved > _WORTH * cost
    return float(cost[kept].sum()), np.where(kept.numpy(), width.numpy(), _DROPPED).astype(np.uint8)
