"""The codec of recorded view parameters: bytes as they are. kdkit/data/views/record.py says what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdkit.cache.codecs.base import check_payload
from kdkit.cache.codecs.feature import FeatureCodec
from kdkit.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class RecordCodec(FeatureCodec):
    """Rows of `shape` = (n,) bytes, stored as they are: n bytes per row."""

    name: ClassVar[str] = "record"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.shape) != 1:
            raise ConfigError(f"a record has one side, its number of bytes, got {list(self.shape)}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return self.numel

    def encode(self, values: Tensor) -> Tensor:
        """Uint8 [B, n] -> uint8 [B, n]."""
        if values.dtype != torch.uint8 or values.shape[1:] != self.shape:
            raise ShapeError(
                f"codec {self.name!r} takes torch.uint8 [B, {self.numel}], got {values.dtype} {list(values.shape)}"
            )
        return values

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, n] -> uint8 [B, n]."""
        check_payload(self, payload)
        return payload
