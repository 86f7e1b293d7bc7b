"""Codecs that keep a number for every class: float32 (exact), float16 and int8.

All values are little-endian. Dimensions: B batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.cache.codecs.base import Codec

_INT8_LEVELS = 255  # the largest uint8 code


@dataclass(frozen=True)
class Float32Codec(Codec):
    """The logits themselves, bit for bit: 4 C bytes a row."""

    name: ClassVar[str] = "float32"

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return 4 * self.num_classes

    def encode(self, logits: Tensor) -> Tensor:
        """[B, C] float -> uint8 [B, 4 C]."""
        return _to_bytes(logits.float())

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, 4 C] -> log-probabilities [B, C]."""
        return F.log_softmax(_from_bytes(payload, torch.float32), dim=1)


@dataclass(frozen=True)
class Float16Codec(Codec):
    """Log-probabilities in half precision: 2 C bytes a row.

    Log-probabilities rather than logits, because then the likely classes, which the divergence weighs most, lie near
    zero where half precision is finest.
    """

    name: ClassVar[str] = "float16"

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return 2 * self.num_classes

    def can_hold(self, logits: Tensor) -> Tensor:
        """Which rows of [B, C] are finite, also as half-precision log-probabilities, bool [B]."""
        return F.log_softmax(logits.float(), dim=1).half().isfinite().all(dim=1)

    def encode(self, logits: Tensor) -> Tensor:
        """[B, C] float -> uint8 [B, 2 C]."""
        return _to_bytes(F.log_softmax(logits.float(), dim=1).half())

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, 2 C] -> log-probabilities [B, C], normalised again after the rounding."""
        return F.log_softmax(_from_bytes(payload, torch.float16).float(), dim=1)


@dataclass(frozen=True)
class Int8Codec(Codec):
    """Logits on 256 evenly spaced levels between the row's least and greatest: C + 8 bytes a row.

    Layout: float32 minimum, float32 step, then one uint8 a class.
    """

    name: ClassVar[str] = "int8"

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return self.num_classes + 8

    def encode(self, logits: Tensor) -> Tensor:
        """[B, C] float -> uint8 [B, C + 8]."""
        log_p = F.log_softmax(logits.float(), dim=1)
        low, high = log_p.aminmax(dim=1, keepdim=True)
        step = (high - low) / _INT8_LEVELS
        codes = ((log_p - low) / step.clamp_min(torch.finfo(torch.float32).tiny)).round().clamp(0, _INT8_LEVELS)
        return torch.cat([_to_bytes(low), _to_bytes(step), codes.to(torch.uint8)], dim=1)

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, C + 8] -> log-probabilities [B, C]."""
        low, step = _from_bytes(payload[:, 0:4], torch.float32), _from_bytes(payload[:, 4:8], torch.float32)
        return F.log_softmax(low + step * payload[:, 8:].float(), dim=1)


def _to_bytes(values: Tensor) -> Tensor:
    """[B, N] of any dtype -> its bytes, uint8 [B, N * itemsize]."""
    return values.contiguous().view(torch.uint8)


def _from_bytes(payload: Tensor, dtype: torch.dtype) -> Tensor:
    """Uint8 [B, N * itemsize] -> [B, N] of `dtype`."""
    payload = payload.contiguous()
    if payload.storage_offset() % dtype.itemsize:  # a slice of one row is contiguous where it stands, aligned or not
        payload = payload.clone()
    return payload.view(dtype)
