"""Codecs of features: any tensor of fixed shape, in single or half precision or in 8 bits per number.

All values are little-endian. Dimensions: B batch, G groups of N numbers in a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from kdkit.cache.codecs.base import RowCodec, check_payload
from kdkit.cache.codecs.raw import from_bytes, to_bytes
from kdkit.cache.format.constants import MAX_SIDES
from kdkit.errors import ConfigError, ShapeError

_LEVELS = 255  # the largest uint8 code
_HEAD_BYTES = 8  # float32 minimum and float32 step
_SHARE = 10  # default of a codec whose bytes are chosen: a tenth of float16's
_LEAST_BYTES, _NUMBERS_PER_BYTE = 16, 4096  # of such a row: its head, and more where it has very many numbers


@dataclass(frozen=True)
class FeatureCodec(RowCodec):
    """Encodes features [B, ...] and decodes them as float32; needs no fit."""

    shape: tuple[int, ...]
    """Shape of one row: (D,), (N, D) or (D, H, W)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not 1 <= len(self.shape) <= MAX_SIDES or min(self.shape) < 1:
            raise ConfigError(f"a feature's row has 1 to {MAX_SIDES} sides of at least 1, got {list(self.shape)}")

    @property
    def numel(self) -> int:
        """Numbers of one row."""
        return math.prod(self.shape)

    def fit(self, sample: Tensor) -> FeatureCodec:
        """A codec fitted to rows [R, ...], each of another image; itself for a codec without a fit."""
        return self

    def suited_to(self, sample: Tensor) -> Self:
        """This codec, with the options that suit a sample of rows [B, ...]; by default itself."""
        return self

    def _check(self, values: Tensor) -> None:
        if values.shape[1:] != self.shape or not values.is_floating_point():
            raise ShapeError(
                f"codec {self.name!r} takes float features [B, {', '.join(map(str, self.shape))}], got "
                f"{values.dtype} {list(values.shape)}"
            )


@dataclass(frozen=True)
class SizedFeature(FeatureCodec):
    """A codec whose bytes per row are chosen."""

    row_bytes: int = 0  # of one encoded row; 0: a tenth of float16's

    def __post_init__(self) -> None:
        super().__post_init__()
        least, size = _LEAST_BYTES + self.numel // _NUMBERS_PER_BYTE, self.row_bytes
        if type(size) is not int or 0 != size < least:  # a file's metadata may hold anything
            what = f"{self.name} needs at least {least} bytes per row of {self.numel} numbers"
            raise ConfigError(f"{what}, got row_bytes={size!r}")
        if size == 0:
            object.__setattr__(self, "row_bytes", max(least, -(-2 * self.numel // _SHARE)))


@dataclass(frozen=True)
class FloatFeature(FeatureCodec):
    """A codec that keeps the numbers in a floating dtype."""

    dtype: ClassVar[torch.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return self.dtype.itemsize * self.numel

    def is_encodable(self, values: Tensor) -> Tensor:
        """Which rows of [B, ...] are finite in the codec's precision too; bool [B]."""
        return super().is_encodable(values.to(self.dtype))

    def encode(self, values: Tensor) -> Tensor:
        """[B, ...] float -> uint8 [B, row_bytes]."""
        self._check(values)
        return to_bytes(values.to(self.dtype).flatten(1))

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> float32 [B, ...]."""
        check_payload(self, payload)
        return from_bytes(payload, self.dtype).float().view(len(payload), *self.shape)


@dataclass(frozen=True)
class Float32Feature(FloatFeature):
    """The numbers themselves, bit for bit: 4 bytes per number."""

    name: ClassVar[str] = "float32"
    dtype: ClassVar[torch.dtype] = torch.float32


@dataclass(frozen=True)
class Float16Feature(FloatFeature):
    """Half precision, 2 bytes per number up to 65504; the error is at most 2^-11 of it, or 2^-25 where that is more."""

    name: ClassVar[str] = "float16"
    dtype: ClassVar[torch.dtype] = torch.float16


@dataclass(frozen=True)
class Int8Feature(FeatureCodec):
    """256 even levels from the minimum to the maximum of a group, 1 byte per number and 8 per group.

    A group is the whole row [D], each token of [N, D], each channel of [D, H, W]: tokens and channels differ in scale.
    Layout: for each group float32 minimum l and float32 step s; then one uint8 code c per number, which decodes to l +
    s c. The error is at most s / 2 = (maximum - minimum) / 510, plus float32 rounding.
    """

    name: ClassVar[str] = "int8"

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return self._groups * _HEAD_BYTES + self.numel

    @property
    def _groups(self) -> int:
        return self.shape[0] if len(self.shape) > 1 else 1

    def is_encodable(self, values: Tensor) -> Tensor:
        """Which rows of [B, ...] are finite, and so is the span of their groups; bool [B]."""
        grouped = values.float().reshape(len(values), self._groups, self.numel // self._groups)
        return super().is_encodable(values) & (grouped.amax(dim=2) - grouped.amin(dim=2)).isfinite().all(dim=1)

    def encode(self, values: Tensor) -> Tensor:
        """[B, ...] float -> uint8 [B, row_bytes]."""
        self._check(values)
        grouped = values.float().reshape(len(values), self._groups, self.numel // self._groups)
        minimum = grouped.amin(dim=2)
        step = (grouped.amax(dim=2) - minimum) / _LEVELS
        level = (grouped - minimum[..., None]) / step.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
        codes = level.round().clamp(0, _LEVELS).to(torch.uint8)
        return torch.cat([to_bytes(torch.stack([minimum, step], dim=2).flatten(1)), codes.flatten(1)], dim=1)

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> float32 [B, ...]."""
        check_payload(self, payload)
        head, codes = payload.split([self._groups * _HEAD_BYTES, self.numel], dim=1)
        minimum, step = from_bytes(head, torch.float32).view(len(payload), self._groups, 2, 1).unbind(dim=2)
        values = torch.addcmul(
            minimum, step, codes.reshape(len(payload), self._groups, self.numel // self._groups).float()
        )
        return values.view(len(payload), *self.shape)
