"""The codec interface: a fixed number of bytes for a teacher's output on one sample.

Dimensions: B batch, C classes, R rows of a fitting sample; ... the shape of a row, e.g. [C] of logits.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from kdkit.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class RowCodec(ABC):
    """Encodes a batch of tensors into uint8 [B, row_bytes], and decodes such rows.

    A frozen dataclass whose fields are the metadata that a cache file stores; fitted values are kept apart in `arrays`,
    which the file stores as datasets. Encoding and decoding run on the device of their input, for a whole
    batch at once.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` must be called before `encode` or `decode`."""
        return False

    @property
    def arrays(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Arrays that `fit` computed, by name; empty for a codec without a fit."""
        return {}

    def with_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """The fitted codec that `arrays`, read from a cache file, describe.

        Raises:
            ConfigError: an array is missing, unknown, or has a wrong dtype, shape or value.
        """
        if arrays:
            raise ConfigError(f"codec {self.name!r} has no fit, but was given arrays {sorted(arrays)}")
        return self

    def is_encodable(self, values: Tensor) -> Tensor:
        """Which rows of [B, ...] can be encoded, bool [B]: those that are finite, and within the codec's range."""
        return values.flatten(1).isfinite().all(dim=1)

    def nearest(self, values: Tensor) -> Tensor:
        """The values [B, ...], those moved that only a lossy codec has made of encodable ones."""
        return values

    @abstractmethod
    def encode(self, values: Tensor) -> Tensor:
        """[B, ...] float -> uint8 [B, row_bytes] on the same device."""

    @abstractmethod
    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> float32 [B, ...] on the same device."""

    def to_dict(self) -> dict[str, Any]:
        """Name and options, as a cache file's metadata holds them."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        return {"name": self.name, **plain}


@dataclass(frozen=True)
class Codec(RowCodec):
    """Encodes logits [B, C] and decodes them into normalised log-probabilities (logits if `multi_label`).

    `create_codec(**codec.to_dict())` recreates the codec.
    """

    num_classes: int

    multi_label: ClassVar[bool] = False
    """Whether it keeps multi-label logits as they are, and `decode` returns logits."""

    def fit(self, sample_logits: Tensor, head: Tensor | None = None) -> Self:
        """A codec of the same options fitted to `sample_logits` [R, C]; itself for a codec without a fit.

        `head` is the weight [C, F] of the teacher's last linear layer over F features, if it has one: a prior for the
        covariance of the logits when the sample is small.
        """
        return self


def check_logits(codec: Codec, logits: Tensor) -> None:
    """Checks that logits are [B, C] floating point."""
    if logits.ndim != 2 or logits.shape[1] != codec.num_classes or not logits.is_floating_point():
        arrived = f"{logits.dtype} {list(logits.shape)}"
        raise ShapeError(f"codec {codec.name!r} takes float logits [B, {codec.num_classes}], got {arrived}")


def check_payload(codec: RowCodec, payload: Tensor) -> None:
    """Checks that a payload is uint8 [B, row_bytes]."""
    if payload.ndim != 2 or payload.shape[1] != codec.row_bytes or payload.dtype != torch.uint8:
        arrived = f"{payload.dtype} {list(payload.shape)}"
        raise ShapeError(f"codec {codec.name!r} decodes torch.uint8 [B, {codec.row_bytes}], got {arrived}")
