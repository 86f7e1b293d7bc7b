"""The fit of the dense codec: a transform, and the low bits that the Rice code of each of its coefficients has.

Dimensions: R rows of a sample, J kept coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdkit.cache.codecs.rice import DROPPED, MAX_LOW_BITS, fit_low_bits, roundings
from kdkit.cache.codecs.steps import MAX_SIZE
from kdkit.cache.codecs.transform import LARGEST_OF_AXIS, FeatureTransform, array_shapes, fit_transform, largest_side
from kdkit.errors import ConfigError

_HELD_OUT = 4
_NUMBERS_PER_ENTRY = 128  # of a sample, per entry of its basis, from which a basis is as good for other rows
_SAVED_COARSE, _SAVED_FINE = 0.14, 0.08  # squared steps that a bit is worth, about the best for the error of a row
_SEARCHED_NUMBERS = 1 << 23  # of the part of a sample that tells how many bits a coefficient takes


class Tables(NamedTuple):
    """The fit on one device."""

    transform: FeatureTransform  # to and from the kept coefficients: first those that have low bits, both ascending
    low_bits: Tensor  # int32 [J]
    power: Tensor  # float32 [J], 2 to the number of low bits
    coarse: Tensor  # float32 [J], the rounding at which a row's step is found
    fine: Tensor  # float32 [J], the rounding of the first coefficients, in which the bits that are left are spent


@dataclass(frozen=True, eq=False)
class DenseFit:
    """The fitted arrays; cache/CODECS.md describes each."""

    shape: tuple[int, ...]
    """Shape of a row."""

    arrays: Mapping[str, np.ndarray[Any, Any]]
    """Those of the transform; "low_bits", uint8 [numel], 255 where a coefficient is not kept."""

    _on: dict[torch.device, Tables] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, sample: Tensor, budget: int) -> DenseFit:
        """The fit to rows [R, ...], float32 on the CPU, that take `budget` bits each on average.

        A basis that is large for its sample describes its own rows better than any others, and would leave directions
        that they lack without any bits: each fourth row then tells the low bits and the others the basis. Otherwise all
        rows tell both.
        """
        shape = tuple(sample.shape[1:])
        held = torch.arange(len(sample)) % _HELD_OUT == 0
        if len(sample) == 1 or sample.numel() >= _NUMBERS_PER_ENTRY * largest_side(shape) ** 2:
            searched, others = sample, sample
        else:
            searched, others = sample[held], sample[~held]
        arrays = fit_transform(others)
        rows = min(len(searched), max(16, _SEARCHED_NUMBERS // math.prod(shape)))
        evenly = torch.arange(rows) * len(searched) // rows
        coefficients = FeatureTransform(shape, arrays, searched.device).forward(searched[evenly])
        return cls(shape, {**arrays, "low_bits": fit_low_bits(coefficients, budget)})

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Low bits of the kept coefficients that have any."""
        return tuple(bits for bits in self.arrays["low_bits"][self._order].tolist() if bits)

    @cached_property
    def _order(self) -> np.ndarray[Any, Any]:
        bits = self.arrays["low_bits"]
        return np.concatenate([np.flatnonzero((bits != 0) & (bits != DROPPED)), np.flatnonzero(bits == 0)])

    def on(self, device: torch.device) -> Tables:
        """The tables on `device`, uploaded once."""
        if device not in self._on:
            index, bits = self._order, self.arrays["low_bits"][self._order]
            both = (roundings(bits, saved) for saved in (_SAVED_COARSE, _SAVED_FINE))
            arrays = bits.astype(np.int32), np.exp2(bits.astype(np.float32)), *both
            tables = (torch.from_numpy(array).to(device) for array in arrays)
            self._on[device] = Tables(FeatureTransform(self.shape, self.arrays, device, index), *tables)
        return self._on[device]

    def check(self, row_bits: int) -> None:
        """Raises ConfigError unless dtypes, shapes and values are those of a fit to rows of so many bits."""
        expected = {**array_shapes(self.shape), "low_bits": ("uint8", (math.prod(self.shape),))}
        if set(self.arrays) != set(expected):
            raise ConfigError(f"the dense codec needs arrays {sorted(expected)}, got {sorted(self.arrays)}")
        for name, (dtype, shape) in expected.items():
            array = self.arrays[name]
            if array.dtype != dtype or array.shape != shape or not np.isfinite(array).all():
                arrived = f"{array.dtype} {list(array.shape)}"
                raise ConfigError(f"dense array {name!r} must be finite {dtype} {list(shape)}, got {arrived}")
            bound = {"mean": MAX_SIZE, "low_bits": DROPPED}.get(name, LARGEST_OF_AXIS)
            if (largest := float(np.abs(array).max(initial=0))) > bound:
                raise ConfigError(f"dense array {name!r} must hold numbers up to {bound:g}, got {largest:g}")
        kept = self.arrays["low_bits"][self.arrays["low_bits"] != DROPPED]
        if kept.max(initial=0) > MAX_LOW_BITS:
            raise ConfigError(f"dense array 'low_bits' must hold 0 to {MAX_LOW_BITS}, or {DROPPED}, got {kept.max()}")
        if 8 * -(-int(kept.sum(dtype=np.int64)) // 8) + len(kept) > row_bits:
            raise ConfigError(f"dense array 'low_bits' keeps {len(kept)} coefficients, for which a row has no room")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DenseFit):
            return NotImplemented
        return all(np.array_equal(array, other.arrays[name]) for name, array in self.arrays.items())

    def __hash__(self) -> int:
        return hash(self.arrays["low_bits"].tobytes())

    def __getstate__(self) -> dict[str, Any]:
        return {"shape": self.shape, "arrays": dict(self.arrays), "_on": {}}  # another process uploads to its devices

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
