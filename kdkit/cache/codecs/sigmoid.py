"""Codecs of multi-label logits: their scale and offset matter, so they are not normalised over the classes.

All values are little-endian. Dimensions: B batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdkit.cache.codecs.base import Codec, check_logits, check_payload
from kdkit.cache.codecs.dense import Float16Codec, Float32Codec
from kdkit.cache.codecs.raw import from_bytes, to_bytes

_LEVELS = 255  # the largest uint8 code
_CERTAIN = 20.0  # sigmoid(20) is 1 - 2e-9: logits beyond it are as good as certain


@dataclass(frozen=True)
class SigmoidFloat32Codec(Float32Codec):
    """The logits themselves, bit for bit: 4 C bytes per row."""

    name: ClassVar[str] = "sigmoid_float32"
    multi_label: ClassVar[bool] = True

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, 4 C] -> logits [B, C]."""
        check_payload(self, payload)
        return from_bytes(payload, torch.float32)


@dataclass(frozen=True)
class SigmoidFloat16Codec(Float16Codec):
    """The logits in half precision: 2 C bytes per row."""

    name: ClassVar[str] = "sigmoid_float16"
    multi_label: ClassVar[bool] = True

    def is_encodable(self, logits: Tensor) -> Tensor:
        """Which rows of [B, C] are finite, also in half precision, bool [B]."""
        return logits.half().isfinite().all(dim=1)

    def encode(self, logits: Tensor) -> Tensor:
        """[B, C] float -> uint8 [B, 2 C]."""
        check_logits(self, logits)
        return to_bytes(logits.half())

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, 2 C] -> logits [B, C]."""
        check_payload(self, payload)
        return from_bytes(payload, torch.float16).float()


@dataclass(frozen=True)
class SigmoidInt8Codec(Codec):
    """Uniform 8-bit quantisation of each row between its extremes: C + 8 bytes per row.

    Layout: float32 minimum m, float32 step s, then one uint8 code c per class: the logit is m + s c. Logits beyond
    +-20 are moved there first.
    """

    name: ClassVar[str] = "sigmoid_int8"
    multi_label: ClassVar[bool] = True

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return self.num_classes + 8

    def encode(self, logits: Tensor) -> Tensor:
        """[B, C] float -> uint8 [B, C + 8]."""
        check_logits(self, logits)
        logits = logits.float().clamp(-_CERTAIN, _CERTAIN)
        least = logits.amin(dim=1, keepdim=True)
        step = (logits.amax(dim=1, keepdim=True) - least) / _LEVELS
        codes = ((logits - least) / step.clamp_min(torch.finfo(torch.float32).tiny)).round().clamp(0, _LEVELS)
        return torch.cat([to_bytes(least), to_bytes(step), codes.to(torch.uint8)], dim=1)

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, C + 8] -> logits [B, C]."""
        check_payload(self, payload)
        extremes = from_bytes(payload[:, :8], torch.float32)
        return extremes[:, :1] + extremes[:, 1:] * payload[:, 8:].float()
