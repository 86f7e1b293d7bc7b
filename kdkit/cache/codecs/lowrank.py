"""Stores the K most probable classes individually, the rest as principal-component coefficients.

Dimensions: B batch, C classes, K entries, D components, R rows of a fitting sample.
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

from kdkit.cache.codecs.base import Codec, check_logits, check_payload
from kdkit.cache.codecs.bits import BitFields
from kdkit.cache.codecs.components import MAX_BITS, Components, Tables, load_components, make_components
from kdkit.cache.codecs.entries import Entries, EntryFormat
from kdkit.cache.codecs.principal import allot_bits, head_rows, principal_components
from kdkit.cache.codecs.search import Levels, TailObjective, chunk_rows
from kdkit.errors import ConfigError, NonFiniteOutputError, ShapeError
from kdkit.runtime.hardware import whole_products

_VALUE_BITS = 7
_GAIN_BITS = 5
_FLAT = 0  # the gain's code for a uniform distribution over the rest
_GAIN_ONE, _GAINS_PER_OCTAVE = 8, 4  # any other code c is a gain of 2**((c - 8) / 4)
_RANGE_SHARE = 0.9  # of a row's coefficients that the gain brings within the range of their levels
_DEEPEST = 40.0  # nats below the likeliest class; lower values are clamped; the difference is negligible for training
_HEAD_ROWS = 1024  # pseudo-count: the head prior weighs as much as this many rows; negligible beside 16,384 rows
_LEAST_ROWS = 32  # that are encoded together, fewer being padded
_MARGIN = 1e-4  # nats by which the top-1 stays ahead: the summation order differs between devices


@dataclass(frozen=True)
class LowRankCodec(Codec):
    """K classes with their log-probabilities, and D quantised coefficients that describe all the others.

    For every row, in nats, KL(teacher || decoded) <= 0.009 + m (log(C - K) - H), where m is the mass that the teacher
    gives to the other classes and H the entropy of that part of its distribution. If the components would do worse than
    a uniform distribution, the row falls back to that. On real logits the divergence is far below this bound.
    """

    name: ClassVar[str] = "lowrank"
    row_bytes: int = 96  # of one encoded row
    entries: int = 0  # K, 1 to C - 1; 0: one for every 16 bytes
    max_rank: int = 0  # maximum number of components D; 0: 64 + 2 row_bytes, at most 3 row_bytes and 512
    _components: Components | None = field(default=None, init=False, repr=False, hash=False)

    def __post_init__(self) -> None:
        if self.entries == 0:
            object.__setattr__(self, "entries", max(1, min(self.row_bytes // 16, self.num_classes - 1)))
        if self.max_rank == 0:
            object.__setattr__(self, "max_rank", max(1, min(3 * self.row_bytes, 64 + 2 * self.row_bytes, 512)))
        if not 1 <= self.entries < self.num_classes:
            raise ConfigError(f"lowrank keeps 1 to {self.num_classes - 1} entries, got entries={self.entries}")
        if self.max_rank < 1:
            raise ConfigError(f"lowrank needs max_rank of at least 1, got {self.max_rank}")
        if self._free_bits < 1:
            min_bytes = (8 * self.row_bytes - self._free_bits) // 8 + 1
            what = f"{self.entries} entries of {self.num_classes} classes"
            raise ConfigError(f"lowrank with {what} needs row_bytes of at least {min_bytes}, got {self.row_bytes}")

    @cached_property
    def _format(self) -> EntryFormat:
        return EntryFormat(self.num_classes, self.entries, _VALUE_BITS)

    @property
    def _free_bits(self) -> int:
        """Bits that are left for coefficients."""
        return 8 * self.row_bytes - sum(self._format.widths) - _GAIN_BITS

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` or `with_arrays` must be called before `encode` or `decode`."""
        return self._components is None

    @property
    def _fitted(self) -> Components:
        if self._components is None:
            raise ConfigError("this lowrank codec is not fitted yet: use codec = codec.fit(sample_logits) first")
        return self._components

    @cached_property
    def _fields(self) -> BitFields:
        return BitFields((*self._format.widths, _GAIN_BITS, *self._fitted.bits.tolist()))

    @property
    def arrays(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Mean, basis, step and bits; empty before `fit`."""
        return {} if self._components is None else self._components.arrays

    def with_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """The fitted codec that `arrays` describe; ConfigError where one of them does not fit."""
        return self._with_components(load_components(arrays, self.num_classes, self._free_bits))

    def _with_components(self, components: Components) -> Self:
        codec = dataclasses.replace(self)
        object.__setattr__(codec, "_components", components)
        return codec

    def fit(self, sample_logits: Tensor, head: Tensor | None = None) -> Self:
        """The codec fitted to `sample_logits` [R, C] and, as a prior for small samples, to `head` [C, F]."""
        check_logits(self, sample_logits)
        if len(sample_logits) == 0 or not bool(sample_logits.isfinite().all()):
            what = "no rows" if len(sample_logits) == 0 else "values that are not finite"
            raise NonFiniteOutputError(f"lowrank is fitted to finite teacher logits; the sample holds {what}")
        target = _centred(F.log_softmax(sample_logits.detach().cpu().float(), dim=1))
        count = len(target) if head is None else len(target) + _HEAD_ROWS
        mean = target.mean(dim=0) * len(target) / count
        rows = target - mean
        if head is not None:
            self._check_head(head)
            rows = torch.cat([rows, head_rows(head.detach().cpu(), rows, _HEAD_ROWS)])
        basis, deviation = principal_components(rows, self.max_rank, count)
        return self._with_components(
            make_components(mean, basis, deviation, allot_bits(deviation, self._free_bits, MAX_BITS))
        )

    def _check_head(self, head: Tensor) -> None:
        if head.ndim != 2 or len(head) != self.num_classes or not bool(head.isfinite().all()):
            raise ShapeError(f"head must be a finite weight [{self.num_classes}, features], got {list(head.shape)}")

    def encode(self, logits: Tensor) -> Tensor:
        """[B, C] float -> uint8 [B, row_bytes]."""
        check_logits(self, logits)
        size = chunk_rows(self.num_classes, len(self._fitted.bits), logits.device)
        if logits.device.type == "cpu":  # elsewhere one shape alone, so that a graph of it can be kept
            size = min(size, max(_LEAST_ROWS, 1 << (len(logits) - 1).bit_length()))
        chunks = [self._encode_chunk(F.pad(c, (0, 0, 0, size - len(c))))[: len(c)] for c in torch.split(logits, size)]
        return torch.cat(chunks)  # few shapes, whose products round alike: a row's bytes do not depend on its batch

    @torch.no_grad()
    def _encode_chunk(self, logits: Tensor) -> Tensor:
        log_p = F.log_softmax(logits.float(), dim=1)
        entries = self._format.quantise(log_p)
        gain_code, codes = self._search(_centred(log_p), entries.ids, self._fitted.on(logits.device))
        others = self._others(torch.cat([gain_code, codes], dim=1), entries)
        lifted = self._keep_top1(entries, self._format.joined(entries, others.clone()))
        decoded = self._format.joined(lifted, others)
        closer = (log_p.exp() * (decoded - self._format.flat(entries))).sum(dim=1) > 0
        is_fitted = (closer & (decoded.argmax(dim=1) == entries.ids[:, 0]))[:, None]
        first = torch.where(is_fitted, lifted.codes, entries.codes)
        gain_code = torch.where(is_fitted, gain_code, _FLAT)
        fields = [dataclasses.replace(entries, codes=first).as_fields(), gain_code, codes * is_fitted]
        return self._fields.pack(torch.cat(fields, dim=1), self.row_bytes)

    def _search(self, target: Tensor, kept: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
        """The gain's code [B, 1] and the coefficients' codes [B, D]."""
        if len(tables.deviation) == 0:  # a sample of equal rows has a mean and no components
            return torch.full_like(kept[:, :1], _GAIN_ONE), kept[:, :0]
        objective = TailObjective(target, kept, tables.stack[0], tables.stack[1:], tables.deviation)
        best = objective.minimise()
        step, half = tables.step[1:], tables.half[1:]
        reach = (best.abs() / (half * step)).kthvalue(max(1, int(_RANGE_SHARE * len(half))), dim=1, keepdim=True)[0]
        gain_code = (_GAIN_ONE + _GAINS_PER_OCTAVE * reach.log2()).ceil().clamp(_FLAT + 1, 2**_GAIN_BITS - 1)
        return gain_code.to(torch.int64), objective.round(
            best, Levels(_gain(gain_code) * step, half, self._fitted.max_codes)
        )

    def _keep_top1(self, entries: Entries, decoded: Tensor) -> Entries:
        """Raise the first entry until no other class decodes above it."""
        first = decoded.gather(1, entries.ids[:, :1])
        rival = decoded.scatter(1, entries.ids[:, :1], -torch.inf).amax(dim=1, keepdim=True)
        lift = ((rival - first + _MARGIN) / self._format.step).ceil().clamp(0, 2**_VALUE_BITS).to(torch.int64)
        codes = torch.cat([(entries.codes[:, :1] - lift).clamp_min(0), entries.codes[:, 1:]], dim=1)
        return dataclasses.replace(entries, codes=codes)

    def _others(self, fields: Tensor, entries: Entries) -> Tensor:
        """Gain and coefficient codes [B, 1 + D] -> log-probabilities among the classes that are no entry, [B, C]."""
        log_ratios = _log_ratios(fields, self._fitted.on(fields.device))
        return F.log_softmax(log_ratios.scatter_(1, entries.ids, -torch.inf), dim=1)

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> log-probabilities [B, C]."""
        check_payload(self, payload)
        fields, count = self._fields.unpack(payload), len(self._format.widths)
        entries = self._format.from_fields(fields[:, :count])
        return self._format.joined(entries, self._others(fields[:, count:], entries))


def _gain(code: Tensor) -> Tensor:
    return torch.exp2((code - _GAIN_ONE) / _GAINS_PER_OCTAVE)


def _log_ratios(fields: Tensor, tables: Tables) -> Tensor:
    """Gain and coefficient codes [B, 1 + D] -> log-probabilities of all classes, each row up to a constant, [B, C]."""
    gain_code = fields[:, :1]
    is_fitted = (gain_code != _FLAT).float()
    coefficients = (fields - tables.half) * (tables.step * (_gain(gain_code) * is_fitted))
    coefficients[:, :1] = is_fitted
    with whole_products(fields.device):  # else the top-1 might not stay ahead by _MARGIN
        return coefficients @ tables.stack


def _centred(log_p: Tensor) -> Tensor:
    """The target of the components: log-probabilities [B, C], clamped from below and centred per row."""
    target = log_p.maximum(log_p.amax(dim=1, keepdim=True) - _DEEPEST)
    return target - target.mean(dim=1, keepdim=True)
