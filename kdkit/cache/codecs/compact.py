"""CompactFeature: features in a tenth of float16's bytes, in the coder that suits them: sparse or dense.

Dimensions: B batch, R rows of a fitting sample; ... the shape of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from kdkit.cache.codecs.base import check_payload
from kdkit.cache.codecs.feature import FeatureCodec
from kdkit.cache.codecs.rice_coder import RiceCoder
from kdkit.cache.codecs.sparse_coder import SparseCoder
from kdkit.cache.codecs.steps import MAX_SIZE
from kdkit.cache.codecs.transform import MAX_CHANNELS, FeatureTransform
from kdkit.errors import ConfigError, NonFiniteOutputError

_SHARE = 10  # default: a tenth of float16's bytes
_LEAST_BYTES, _NUMBERS_A_BYTE = 16, 4096  # of a row: its head, and the least upper part of its places
_HELD_OUT = 4  # each fourth row of the sample, which both coders are compared on
_CHUNK_NUMBERS = 1 << 20  # of the rows that are encoded together, which bounds temporaries and keeps them in the cache
_SAMPLE_NUMBERS = 1 << 25  # of a fitting sample


@dataclass(frozen=True)
class CompactFeature(FeatureCodec):
    """Rows of a chosen number of bytes, each with the finest step at which its levels fit, in a universal code.

    Two coders exist. `SparseCoder` stores places and levels of the numbers that are not zero, which suits features
    after a ReLU. `RiceCoder` stores coefficients of a fitted transform, which suits all others. `fit` takes the one
    with the smaller squared error on rows that neither was fitted to. cache/CODECS.md describes every byte.

    What is lost depends on the features; the build measures and stores it.
    """

    name: ClassVar[str] = "compact"
    row_bytes: int = 0  # of one encoded row; 0: a tenth of float16's
    _coder: SparseCoder | RiceCoder | None = field(default=None, init=False, repr=False, hash=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        least = _LEAST_BYTES + self.numel // _NUMBERS_A_BYTE
        if self.row_bytes == 0:
            object.__setattr__(self, "row_bytes", max(least, -(-2 * self.numel // _SHARE)))
        if self.row_bytes < least:
            raise ConfigError(
                f"compact needs at least {least} bytes per row of {self.numel} numbers, got row_bytes={self.row_bytes}"
            )

    @property
    def max_fit_rows(self) -> int:
        """Rows beyond which `fit` ignores its sample, for the sake of memory."""
        return max(_HELD_OUT, _SAMPLE_NUMBERS // self.numel)

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` or `with_arrays` must be called before `encode` or `decode`."""
        return self._coder is None

    @property
    def _fitted(self) -> SparseCoder | RiceCoder:
        if self._coder is None:
            raise ConfigError("this compact codec is not fitted yet: use codec = codec.fit(sample_features) first")
        return self._coder

    @property
    def arrays(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Arrays of the coder; empty before `fit`."""
        return {} if self._coder is None else self._coder.arrays

    def with_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """The fitted codec that `arrays` describe; ConfigError where one of them does not fit."""
        self._check_arrays(arrays)
        if "sparse" in arrays:
            return self._with_coder(SparseCoder.load(dict(arrays), self.numel, self.row_bytes))
        transform = FeatureTransform(self.shape, arrays["mean"], arrays["basis"], arrays.get("positions"))
        return self._with_coder(RiceCoder(transform, self.row_bytes, arrays["rice"], arrays["offsets"]).check())

    def fit(self, sample: Tensor) -> Self:
        """The codec fitted to rows [R, ...], each of another image: views of one image in both parts would flatter.

        Raises:
            ShapeError: the rows have another shape.
            NonFiniteOutputError: there is no row, or one is not encodable.
        """
        self._check(sample)
        rows = sample[: self.max_fit_rows].detach().cpu().float()
        if len(rows) == 0 or not bool(self.is_encodable(rows).all()):
            raise NonFiniteOutputError(
                f"compact is fitted to at least one row of finite features, got {len(rows)} rows, or values beyond "
                f"{MAX_SIZE:.0e}"
            )
        held = torch.arange(len(rows)) % _HELD_OUT == 0
        seen = rows if held.all() else rows[~held]
        errors = [_error(candidate, rows[held]) for candidate in self._candidates(seen)]
        return self._candidates(rows, only=errors.index(min(errors)))[0]

    def _candidates(self, rows: Tensor, only: int | None = None) -> list[Self]:
        """This codec with each coder that is possible, fitted to the rows; `only`: that one alone."""
        fits = [lambda: SparseCoder.fit(rows.flatten(1), self.row_bytes)]
        if (self.shape[-1] if len(self.shape) < 3 else self.shape[0]) <= MAX_CHANNELS:
            fits.append(lambda: RiceCoder.fit(rows, self.row_bytes))  # type: ignore[arg-type, return-value]
        return [self._with_coder(fit()) for place, fit in enumerate(fits) if only in (None, place)]

    def _with_coder(self, coder: SparseCoder | RiceCoder) -> Self:
        codec = dataclasses.replace(self)
        object.__setattr__(codec, "_coder", coder)
        return codec

    def _check_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Raises ConfigError unless these are the arrays of one of the coders, with their dtypes and shapes."""
        sides = self.shape
        channels = sides[-1] if len(sides) < 3 else sides[0]
        dense = {
            "mean": ("float32", sides if len(sides) < 3 else (channels,)),
            "basis": ("float16", (channels, channels)),
        }
        positions = {"positions": ("float16", (sides[0], sides[0]))} if len(sides) == 2 else {}
        either = {"offsets": ("float32", (3,))}
        coders = ({"sparse": ("uint8", (2,))}, {**dense, **positions, "rice": ("uint8", (self.numel,))})
        expected = {**either, **coders["sparse" not in arrays]}
        if set(arrays) != set(expected):
            raise ConfigError(f"the compact codec needs arrays {sorted(expected)}, got {sorted(arrays)}")
        for name, (dtype, shape) in expected.items():
            array = arrays[name]
            if array.dtype != dtype or array.shape != shape or not np.isfinite(array).all():
                arrived = f"{array.dtype} {list(array.shape)}"
                raise ConfigError(f"compact array {name!r} must be finite {dtype} {list(shape)}, got {arrived}")

    def is_encodable(self, values: Tensor) -> Tensor:
        """Which rows of [B, ...] are finite and not beyond 1e15; bool [B]."""
        return (values.flatten(1).abs() <= MAX_SIZE).all(dim=1)

    def encode(self, values: Tensor) -> Tensor:
        """[B, ...] float -> uint8 [B, row_bytes]."""
        self._check(values)
        coder, size = self._fitted, max(1, _CHUNK_NUMBERS // self.numel)
        rows = values.detach().float()
        rows = rows.flatten(1) if isinstance(coder, SparseCoder) else rows
        filling = [0, 0] * (rows.ndim - 1)
        chunks = [coder.encode(F.pad(c, (*filling, 0, size - len(c))))[: len(c)] for c in torch.split(rows, size)]
        return torch.cat(chunks)  # always the same shapes, so that a row's bytes do not depend on its batch

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> float32 [B, ...]."""
        check_payload(self, payload)
        return self._fitted.decode(payload).view(len(payload), *self.shape)


def _error(codec: CompactFeature, rows: Tensor) -> float:
    """Mean over the rows of |x - x^|^2 / |x|^2."""
    rows = rows[: max(1, codec.max_fit_rows // 16)]
    wanted = rows.flatten(1)
    lost = (codec.decode(codec.encode(rows)).flatten(1) - wanted).norm(dim=1)
    return float((lost / wanted.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)).square().mean())
