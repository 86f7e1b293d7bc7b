"""DenseFeature: features that are not sparse, e.g. maps, tokens and vectors without a ReLU, in a fitted basis.

Dimensions: B batch, R rows of a fitting sample, J kept coefficients; ... the shape of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from kdkit.cache.codecs.base import check_payload
from kdkit.cache.codecs.bits import BitFields
from kdkit.cache.codecs.dense_fit import DenseFit, Tables
from kdkit.cache.codecs.feature import SizedFeature
from kdkit.cache.codecs.raw import to_bytes
from kdkit.cache.codecs.rice import codes_of, levels_in
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
from kdkit.cache.codecs.transform import MAX_SIDE, Scratch, largest_side
from kdkit.cache.codecs.unary import bytes_with_ones, zeros_before_ones
from kdkit.errors import ConfigError, NonFiniteOutputError

_FLAT, _FLAT_BYTES = 0, 4  # the step's code of a row of equal numbers, and the bytes of that number
_CPU_ROWS, _GPU_ROWS = 1 << 8, 1 << 12  # at most, because one row costs as much as all of these
_FINEST_OCTAVES = 22  # below a row's largest coefficient, whose code is then below 2**24
_CPU_CHUNK, _GPU_CHUNK = 1 << 17, 1 << 24  # numbers of the rows that are encoded together, as a CPU's caches hold
_DECODED = 8  # as many chunks are decoded together, which needs no padding


@dataclass(frozen=True)
class DenseFeature(SizedFeature):
    """Coefficients of a fitted orthogonal transform in Rice codes, one step per row.

    The step is the finest one whose codes fit into the row's bytes. cache/CODECS.md describes every byte. What is lost
    depends on the features: the build measures and stores it.
    """

    name: ClassVar[str] = "dense"
    _fit: DenseFit | None = field(default=None, init=False, repr=False, hash=False)

    @property
    def is_possible(self) -> bool:
        """Whether no side of a basis is too large for a fit."""
        return largest_side(self.shape) <= MAX_SIDE

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` or `with_arrays` must be called before `encode` or `decode`."""
        return self._fit is None

    @property
    def _fitted(self) -> DenseFit:
        if self._fit is None:
            raise ConfigError("this dense codec is not fitted yet: use codec = codec.fit(sample_features) first")
        return self._fit

    @property
    def arrays(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Those of the transform, low_bits and offsets; empty before `fit`."""
        return {} if self._fit is None else self._fit.arrays

    def with_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """The fitted codec that `arrays` describe; ConfigError where one of them does not fit."""
        fit = DenseFit(self.shape, arrays)
        fit.check(8 * self._room)
        return self._with(fit)

    def fit(self, sample: Tensor) -> Self:
        """The codec fitted to rows [R, ...], each of another image: views of one image would only look like more.

        Raises:
            ShapeError: the rows have another shape.
            NonFiniteOutputError: there is no row, or one is not encodable.
            ConfigError: a side is too large for a basis.
        """
        self._check(sample)
        if not self.is_possible:
            most = f"{MAX_SIDE} channels, and as many tokens"
            raise ConfigError(f"dense takes at most {most}, got {list(self.shape)}: use sparse or int8")
        rows = sample.detach().cpu().float()
        if len(rows) == 0 or not bool(self.is_encodable(rows).all()):
            what = "no rows" if len(rows) == 0 else f"NaN, infinity or values beyond {MAX_SIZE:.0e}"
            raise NonFiniteOutputError(f"dense is fitted to finite features; the sample holds {what}")
        return self._with(DenseFit.of(rows, 8 * self._room - 14))  # both parts of a row end at whole bytes

    def _with(self, fit: DenseFit) -> Self:
        codec = dataclasses.replace(self)
        object.__setattr__(codec, "_fit", fit)
        return codec

    def is_encodable(self, values: Tensor) -> Tensor:
        """Which rows of [B, ...] are finite and not beyond 1e15; bool [B]."""
        return (values.flatten(1).float().abs() <= MAX_SIZE).all(dim=1)

    @property
    def _room(self) -> int:
        return self.row_bytes - STEP_BYTES

    @cached_property
    def _fields(self) -> BitFields | None:
        widths = self._fitted.widths
        return BitFields(widths) if widths else None

    @property
    def _low_bytes(self) -> int:
        return 0 if self._fields is None else self._fields.num_bytes

    @property
    def _unary_bytes(self) -> int:
        return self._room - self._low_bytes

    def _chunk_rows(self, device: torch.device) -> int:
        numbers, most = (_CPU_CHUNK, _CPU_ROWS) if device.type == "cpu" else (_GPU_CHUNK, _GPU_ROWS)
        return max(1, min(most, numbers // max(self.numel, self.row_bytes)))

    @torch.no_grad()
    def encode(self, values: Tensor) -> Tensor:
        """[B, ...] float -> uint8 [B, row_bytes]."""
        self._check(values)
        rows, size = values.float(), self._chunk_rows(values.device)
        padding = [0] * (2 * len(self.shape) + 1)
        chunks = [self._encode(F.pad(c, (*padding, size - len(c))))[: len(c)] for c in torch.split(rows, size)]
        return torch.cat(chunks)  # always the same shapes, so that a row's bytes do not depend on its batch

    def _encode(self, rows: Tensor) -> Tensor:
        tables = self._fitted.on(rows.device)
        kept = tables.transform.forward(rows)
        sizes, negative = kept.abs(), (kept < 0).float()
        code = self._finest(sizes, negative, tables)
        codes, high = self._filling(sizes / steps(rows.device)[code], negative, tables)
        parts = [as_bytes(code, STEP_BYTES)]
        if self._fields is not None:
            low = (codes - high * tables.power)[:, : len(self._fields.widths)]
            parts.append(self._fields.pack(low, self._low_bytes))
        places = (high.to(torch.int64) + 1).cumsum(dim=1) - 1
        return self._or_flat(rows, torch.cat([*parts, bytes_with_ones(places, self._unary_bytes)], dim=1))

    def _or_flat(self, rows: Tensor, encoded: Tensor) -> Tensor:
        """The encoded rows, those replaced that one number describes at least as well: rows of zeros stay exact."""
        wanted = rows.flatten(1)
        scale = wanted.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        constant = wanted.mean(dim=1, keepdim=True, dtype=torch.float64).float()
        decoded = torch.empty_like(rows, memory_format=torch.contiguous_format)
        self._decode(encoded, decoded)
        flat, lost = (
            ((found - wanted) / scale).square().sum(dim=1, keepdim=True, dtype=torch.float64)
            for found in (constant, decoded.flatten(1))
        )
        head = as_bytes(torch.full_like(constant, _FLAT, dtype=torch.int64), STEP_BYTES)
        row = F.pad(torch.cat([head, to_bytes(constant)], dim=1), (0, self._room - _FLAT_BYTES))
        return torch.where(flat <= lost, row, encoded)

    def _filling(self, sizes: Tensor, negative: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
        """The codes of sizes in steps [B, J] and what of them is in unary, float: as many finely rounded as fit."""
        (codes, high), (finer, more) = (
            (found, (found / tables.power).floor_())
            for found in (codes_of(sizes, negative, rounding) for rounding in (tables.coarse, tables.fine))
        )
        room = 8 * self._unary_bytes - sizes.shape[1]
        fits = (more - high).cumsum(dim=1, dtype=torch.int32) <= room - whole_sum(high, room)
        return torch.where(fits, finer, codes), torch.where(fits, more, high)

    def _finest(self, sizes: Tensor, negative: Tensor, tables: Tables) -> Tensor:
        """The code of the finest step at which each row fits, int64 [B, 1]; at the coarsest all do."""
        table, count = steps(sizes.device), sizes.shape[1]
        room = 8 * self._unary_bytes - count
        if count == 0:
            return torch.full((len(sizes), 1), COARSEST, dtype=torch.int64, device=sizes.device)

        def excess(code: Tensor, every: int) -> Tensor:
            part = slice(None, None, every)
            codes = codes_of(sizes[:, part] / table[code], negative[:, part], tables.coarse[part])
            return every * whole_sum(codes.div_(tables.power[part]).floor_(), room) - room

        largest = sizes.amax(dim=1, keepdim=True).clamp_min(table[0])
        # Down to a step at which codes are whole numbers in float32, up to one at which all are 0.
        low = (largest.log2() * PER_OCTAVE + ONE).floor().to(torch.int64) - _FINEST_OCTAVES * PER_OCTAVE
        low = low.clamp(_FLAT + 1, COARSEST)
        return finest(excess, room, count, low, (low + (_FINEST_OCTAVES + 2) * PER_OCTAVE).clamp_max(COARSEST))

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> float32 [B, ...]."""
        check_payload(self, payload)
        decoded = torch.empty(len(payload), *self.shape, dtype=torch.float32, device=payload.device)
        self._decode(payload, decoded)
        return decoded

    def _decode(self, payload: Tensor, into: Tensor) -> None:
        tables, size = self._fitted.on(payload.device), _DECODED * self._chunk_rows(payload.device)
        code = as_number(payload[:, :STEP_BYTES])
        step = steps(payload.device)[code.clamp_max(COARSEST)]
        scratch = tables.transform.scratch(min(size, len(payload)))
        for first in range(0, len(payload), size):
            part = slice(first, first + size)
            levels = self._levels(payload[part], tables, scratch)
            _, numbers = scratch.pair(*levels.shape)
            tables.transform.inverse(numbers.copy_(levels), step[part], into[part], scratch)
        flat = flat_value(payload[:, STEP_BYTES : STEP_BYTES + _FLAT_BYTES])
        is_flat, sides = code == _FLAT, (-1,) + (1,) * len(self.shape)
        if payload.device.type != "cpu" or bool(is_flat.any()):  # without waiting for the device
            torch.where(is_flat.view(sides), flat.view(sides), into, out=into)

    def _levels(self, payload: Tensor, tables: Tables, scratch: Scratch) -> Tensor:
        """The levels of the kept coefficients, int32 [B, J], in the first part of `scratch`."""
        unary, count = payload[:, STEP_BYTES + self._low_bytes :], len(tables.low_bits)
        codes, spare = scratch.pair(len(payload), count, torch.int32)
        zeros_before_ones(unary, count, out=codes)
        codes <<= tables.low_bits
        if self._fields is not None:
            codes[:, : len(self._fields.widths)] += self._fields.unpack(payload[:, STEP_BYTES:])
        return levels_in(codes, spare)
