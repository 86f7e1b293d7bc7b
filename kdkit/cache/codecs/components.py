"""The fitted part of the lowrank codec: a mean, principal components, and the levels of each component's coefficient.

Dimensions: C classes, D components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdkit.errors import ConfigError

MAX_BITS = 8  # of one coefficient: steps finer than 1/256 of its range are smaller than any other error
# Distance, in deviations, between the 2**b levels that suit a normal variable best (Max 1960, table II), b = 1 to 8.
_SPACING = np.array([1.596, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308])
_WIDEN = 1.3  # coefficients found under a row's own weights spread wider than plain projections
_MAX_LOGIT = 1e30  # far from what float32 holds, so that sums and differences of logits are finite
_STORED = {"mean": "float32", "basis": "float16", "step": "float32", "bits": "uint8"}


class Tables(NamedTuple):
    """The components on one device, float32. Index 0 is the mean, whose coefficient is 1 or, for a flat row, 0."""

    stack: Tensor  # [1 + D, C] nats: the mean, then the basis
    step: Tensor  # [1 + D] nats between two levels
    half: Tensor  # [1 + D] the code, a half-integer, that would mean 0
    deviation: Tensor  # [D] nats, of the sample's coefficients


@dataclass(frozen=True, eq=False)
class Components:
    """The fitted arrays; cache/CODECS.md describes each."""

    mean: np.ndarray[Any, Any]  # float32 [C]
    basis: np.ndarray[Any, Any]  # float16 [D, C]: half precision moves a decoded row less than its coarsest level does
    step: np.ndarray[Any, Any]  # float32 [D]
    bits: np.ndarray[Any, Any]  # uint8 [D]
    _tables: dict[torch.device, Tables] = field(default_factory=dict, init=False, repr=False)

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The four arrays by name."""
        return {name: getattr(self, name) for name in _STORED}

    @property
    def max_codes(self) -> list[int]:
        """The largest code of each coefficient."""
        return [(1 << bits) - 1 for bits in self.bits.tolist()]

    def on(self, device: torch.device) -> Tables:
        """The tables on `device`, uploaded once."""
        if device not in self._tables:
            stack = np.concatenate([self.mean[None], self.basis.astype(np.float32)])
            step, half = np.pad(self.step, (1, 0)), np.pad((2.0**self.bits - 1) / 2, (1, 0))
            deviation = self.step / (_WIDEN * _SPACING[self.bits.astype(np.int64) - 1])
            tables = (torch.from_numpy(a.astype(np.float32)).to(device) for a in (stack, step, half, deviation))
            self._tables[device] = Tables(*tables)
        return self._tables[device]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Components):
            return NotImplemented
        return all(np.array_equal(array, other.arrays[name]) for name, array in self.arrays.items())

    def __hash__(self) -> int:
        return hash((self.step.tobytes(), self.bits.tobytes()))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.arrays, "_tables": {}}  # a pickle goes to another process, which uploads to its own devices

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def make_components(mean: Tensor, basis: Tensor, deviation: Tensor, bits: list[int]) -> Components:
    """Components from a sample's mean [C], basis [D, C] and deviations [D]; components of 0 bits are dropped."""
    given = np.array(bits, dtype=np.uint8)
    used = given > 0
    step = _WIDEN * deviation.numpy(force=True)[used] * _SPACING[given[used].astype(np.int64) - 1]
    kept = basis.numpy(force=True)[used].astype(np.float16)
    return Components(mean.numpy(force=True).astype(np.float32), kept, step.astype(np.float32), given[used])


def load_components(arrays: Mapping[str, np.ndarray[Any, Any]], num_classes: int, free_bits: int) -> Components:
    """Components from stored arrays, each checked: names, dtypes, shapes, values, bits that fit into a row."""
    if set(arrays) != set(_STORED):
        raise ConfigError(f"the lowrank codec needs arrays {sorted(_STORED)}, got {sorted(arrays)}")
    rank = len(np.atleast_1d(arrays["bits"]))
    shapes = {"mean": (num_classes,), "basis": (rank, num_classes), "step": (rank,), "bits": (rank,)}
    for name, dtype in _STORED.items():
        array = arrays[name]
        if array.dtype != dtype or array.shape != shapes[name]:
            arrived = f"{array.dtype} {list(array.shape)}"
            raise ConfigError(f"lowrank array {name!r} must be {dtype} {list(shapes[name])}, got {arrived}")
        if not np.isfinite(array).all():
            raise ConfigError(f"lowrank array {name!r} holds values that are not finite")
    _check_levels(arrays["step"], arrays["bits"], free_bits)
    _check_reach(arrays)
    return Components(**{name: np.ascontiguousarray(arrays[name]) for name in _STORED})


def _check_levels(step: np.ndarray[Any, Any], bits: np.ndarray[Any, Any], free_bits: int) -> None:
    if not (step > 0).all():
        raise ConfigError("lowrank array 'step' must be above 0 throughout")
    if not ((bits >= 1) & (bits <= MAX_BITS)).all():
        raise ConfigError(f"lowrank array 'bits' must hold 1 to {MAX_BITS}, got {bits.min()} to {bits.max()}")
    if int(bits.sum()) > free_bits:
        raise ConfigError(f"lowrank array 'bits' sums to {int(bits.sum())}, but a row has room for {free_bits}")


def _check_reach(arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Finite arrays may still decode to infinity, and its softmax to NaN."""
    mean, basis, step = (np.abs(arrays[name].astype(np.float64)) for name in ("mean", "basis", "step"))
    reach = (mean + (step * 2.0 ** arrays["bits"].astype(np.float64)) @ basis).max(initial=0.0)
    if reach > _MAX_LOGIT:
        raise ConfigError(f"the lowrank arrays decode to logits up to {reach:.1e}, expected at most {_MAX_LOGIT:.0e}")
