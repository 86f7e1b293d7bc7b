"""Codecs that keep a number for every class: float32 (exact), float16 and int8.

All values are little-endian. Dimensions: B batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.cache.codecs.base import Codec, check_logits, check_payload
from kdkit.cache.codecs.raw import from_bytes, to_bytes

_INT8_LEVELS = 255  # the largest uint8 code
# Levels are denser near the likely classes; evenly spaced levels give 1.5 times the divergence.
_INT8_LINEAR, _INT8_SQUARE = 0.4, 0.6
_INT8_DEEPEST = 30.0  # nats: one class far below all others must not reduce the resolution for the others
_FLOAT16_LEAST = -65504.0


@dataclass(frozen=True)
class Float32Codec(Codec):
    """The logits themselves, bit for bit: 4 C bytes per row."""

    name: ClassVar[str] = "float32"

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return 4 * self.num_classes

    def encode(self, logits: Tensor) -> Tensor:
        """[B, C] float -> uint8 [B, 4 C]."""
        check_logits(self, logits)
        return to_bytes(logits.float())

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, 4 C] -> log-probabilities [B, C]."""
        check_payload(self, payload)
        return F.log_softmax(from_bytes(payload, torch.float32), dim=1)


@dataclass(frozen=True)
class Float16Codec(Codec):
    """Log-probabilities in half precision: 2 C bytes per row.

    Log-probabilities rather than logits, because then the likely classes, which the divergence weighs most, are near
    zero, where half precision is finest.
    """

    name: ClassVar[str] = "float16"

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return 2 * self.num_classes

    def is_encodable(self, logits: Tensor) -> Tensor:
        """Which rows of [B, C] are finite, also as half-precision log-probabilities, bool [B]."""
        return F.log_softmax(logits.float(), dim=1).half().isfinite().all(dim=1)

    def encode(self, logits: Tensor) -> Tensor:
        """[B, C] float -> uint8 [B, 2 C]; a log-probability below -65504 is clamped there; its probability is
        effectively 0."""
        check_logits(self, logits)
        return to_bytes(F.log_softmax(logits.float(), dim=1).clamp_min(_FLOAT16_LEAST).half())

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, 2 C] -> log-probabilities [B, C], normalised again after the rounding."""
        check_payload(self, payload)
        return F.log_softmax(from_bytes(payload, torch.float16).float(), dim=1)


@dataclass(frozen=True)
class Int8Codec(Codec):
    """Non-uniform 8-bit quantisation of the distance to the max logit, finest near the top: C + 4 bytes per row.

    Layout: float32 depth d, the least likely class's distance, at most 30 nats; then one uint8 code c per class. With
    u = c / 255 the class is d (0.4 u + 0.6 u^2) below the top. KL(teacher || decoded) <= 0.005 for every row.
    """

    name: ClassVar[str] = "int8"

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return self.num_classes + 4

    def encode(self, logits: Tensor) -> Tensor:
        """[B, C] float -> uint8 [B, C + 4]."""
        check_logits(self, logits)
        logits = logits.float()
        below = (logits.amax(dim=1, keepdim=True) - logits).clamp_max(_INT8_DEEPEST)
        depth = below.amax(dim=1, keepdim=True)
        share = below / depth.clamp_min(torch.finfo(torch.float32).tiny)
        level = ((_INT8_LINEAR**2 + 4 * _INT8_SQUARE * share).sqrt() - _INT8_LINEAR) / (2 * _INT8_SQUARE)
        codes = (level * _INT8_LEVELS).round().clamp(0, _INT8_LEVELS)
        return torch.cat([to_bytes(depth), codes.to(torch.uint8)], dim=1)

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, C + 4] -> log-probabilities [B, C]."""
        check_payload(self, payload)
        depth, level = from_bytes(payload[:, :4], torch.float32), payload[:, 4:].float() / _INT8_LEVELS
        return F.log_softmax(-depth * level * (_INT8_LINEAR + _INT8_SQUARE * level), dim=1)
