"""LinearHead: a teacher's last layer, and the features that logits were computed of.

Logits count up to a constant per row, as softmax sees them. Dimensions: B batch, C classes, F features, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.errors import ConfigError
from kdkit.runtime.hardware import whole_products

_NEGLIGIBLE = 1e-7  # of the largest eigenvalue: directions of the features that the logits hardly show
_NOT_LINEAR = 0.01  # of the squared logits, which the head does not explain: more than half precision leaves
_ROWS = 256  # of a sample that are worked on together
_LARGEST = 1e15  # of a number of a head, so that products are finite


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Logits = weight features + bias."""

    weight: np.ndarray[Any, Any]  # float16 [C, F]; its mean over the classes is 0
    bias: np.ndarray[Any, Any]  # float32 [C]
    _on: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _inverse_on: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray[Any, Any]], num_classes: int) -> LinearHead:
        """The head of stored arrays; ConfigError unless they have its dtypes, shapes and finite values."""
        if set(arrays) != {"weight", "offset"}:
            raise ConfigError(f"the head codec needs arrays ['offset', 'weight'], got {sorted(arrays)}")
        weight, bias = arrays["weight"], arrays["offset"]
        fits = weight.dtype == "float16" and weight.ndim == 2 and len(weight) == num_classes and weight.shape[1] > 0
        if not fits or bias.dtype != "float32" or bias.shape != (num_classes,):
            arrived = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in arrays.items())
            raise ConfigError(
                f"head arrays must be float16 [{num_classes}, F] and float32 [{num_classes}], got {arrived}"
            )
        if not (np.isfinite(weight).all() and (np.abs(bias) <= _LARGEST).all()):
            raise ConfigError("the arrays of the head codec hold values that are not finite")
        return cls(weight, bias)

    @property
    def num_features(self) -> int:
        """F."""
        return int(self.weight.shape[1])

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Weight [C, F] and bias [C] on `device`, float32, uploaded once."""
        if device not in self._on:
            self._on[device] = tuple(torch.from_numpy(a).to(device).float() for a in (self.weight, self.bias))  # type: ignore[assignment]
        return self._on[device]

    def features_of(self, logits: Tensor) -> Tensor:
        """The smallest features whose logits are nearest to `logits` [B, C]; float32 [B, F]."""
        weight, bias = self.on(logits.device)
        inverse = self._inverse(logits.device)
        with whole_products(logits.device):
            wanted = logits - logits.mean(dim=1, keepdim=True) - bias
            found = wanted @ weight @ inverse
            return found + (wanted - found @ weight.T) @ weight @ inverse  # what float32 rounded in the first pass

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues of weight^T weight, which of them are not negligible, and the axes; float64 on the CPU."""
        weight = torch.from_numpy(self.weight).float()
        values, axes = torch.linalg.eigh((weight.T @ weight).double())
        return values, values > _NEGLIGIBLE * values[-1], axes

    @property
    def is_invertible(self) -> bool:
        """Whether logits tell all features, and not only some combinations of them."""
        return bool(self._eigen[1].all())

    def _inverse(self, device: torch.device) -> Tensor:
        """The pseudoinverse of weight^T weight, float32 [F, F]."""
        if device not in self._inverse_on:
            values, kept, axes = self._eigen
            scaled = torch.where(kept, 1 / values.where(kept, 1), 0)
            self._inverse_on[device] = ((axes * scaled) @ axes.T).float().to(device)
        return self._inverse_on[device]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LinearHead):
            return NotImplemented
        return np.array_equal(self.weight, other.weight) and np.array_equal(self.bias, other.bias)

    def __hash__(self) -> int:
        return hash(self.bias.tobytes())

    def __getstate__(self) -> dict[str, Any]:
        return {"weight": self.weight, "bias": self.bias, "_on": {}, "_inverse_on": {}}  # devices of another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def fit_head(logits: Tensor, weight: Tensor) -> tuple[LinearHead, Tensor]:
    """The head of logits [R, C] that a layer of this weight [C, F] computed, and their features, float32 [R, F].

    The bias follows from the logits. Features are known up to a constant: the one for which the least of each over
    the sample is 0, where all features are known, so that those after a ReLU have their zeros again.

    Raises:
        ConfigError: the weight has another shape, or logits are not its product with features.
    """
    if weight.ndim != 2 or len(weight) != logits.shape[1] or not bool(weight.isfinite().all()):
        raise ConfigError(f"head must be a finite weight [{logits.shape[1]}, features], got {list(weight.shape)}")
    centred = (weight.double() - weight.double().mean(dim=0)).half().numpy()
    level = logits.mean(dim=0, dtype=torch.float64)
    level = (level - level.mean()).float()
    plain = LinearHead(centred, np.zeros(len(centred), dtype=np.float32))
    matrix, _ = plain.on(logits.device)
    bias = level - matrix @ plain.features_of(level[None])[0]  # what no features explain
    head = LinearHead(centred, bias.numpy())
    found, lost, whole = [], 0.0, 0.0
    for rows in torch.split(logits, _ROWS):
        features = head.features_of(rows)
        wanted = rows - rows.mean(dim=1, keepdim=True) - bias
        lost += float((wanted - features @ matrix.T).square().sum(dtype=torch.float64))
        whole += float(wanted.square().sum(dtype=torch.float64))
        found.append(features)
    if lost > _NOT_LINEAR * whole:
        what = f"{lost / whole:.0%} of the squared logits, expected at most {_NOT_LINEAR:.0%}"
        raise ConfigError(f"the teacher's last layer leaves out {what}: use lowrank or float16")
    features = torch.cat(found)
    lift = matrix @ features.amin(dim=0)
    return LinearHead(centred, (bias + lift).numpy()), features - plain.features_of(lift[None])
