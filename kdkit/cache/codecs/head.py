"""HeadCodec: logits as the features that the teacher's last, linear layer takes, and that layer once per cache.

Dimensions: B batch, C classes, F features, R rows of a fitting sample.
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

from kdkit.cache.codecs.base import Codec, check_logits, check_payload
from kdkit.cache.codecs.compact import CompactFeature
from kdkit.cache.codecs.dense_feature import DenseFeature
from kdkit.cache.codecs.feature import FeatureCodec
from kdkit.cache.codecs.linear_head import LinearHead, fit_head
from kdkit.cache.codecs.sparse import SparseFeature
from kdkit.cache.codecs.steps import MAX_SIZE
from kdkit.errors import ConfigError, NonFiniteOutputError
from kdkit.runtime.hardware import whole_products

_CHUNK_ROWS = 64  # rows that are encoded together
_LEAST_BYTES = 20  # of a row, whatever the number of features


@dataclass(frozen=True)
class HeadCodec(Codec):
    """Features found again from the logits by least squares, in the codec `sparse` or `dense`; decoded by the head.

    A row takes the bytes of its features, however many classes there are. What is lost depends on the features; the
    build measures and stores it. Classes that the head holds apart stay apart, but no class is kept one by one.
    """

    name: ClassVar[str] = "head"
    max_fit_rows: ClassVar[int] = 4096
    """Rows of a sample that a fit looks at, the first ones."""
    row_bytes: int = 256  # of one encoded row
    _head: LinearHead | None = field(default=None, init=False, repr=False, hash=False)
    _features: FeatureCodec | None = field(default=None, init=False, repr=False, hash=False)

    def __post_init__(self) -> None:
        if type(self.row_bytes) is not int or self.row_bytes < _LEAST_BYTES:  # a file's metadata may hold anything
            raise ConfigError(f"head needs row_bytes of at least {_LEAST_BYTES}, got {self.row_bytes!r}")

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` or `with_arrays` must be called before `encode` or `decode`."""
        return self._head is None

    @property
    def _fitted(self) -> tuple[LinearHead, FeatureCodec]:
        if self._head is None or self._features is None:
            raise ConfigError("this head codec is not fitted yet: use codec = codec.fit(sample_logits, head) first")
        return self._head, self._features

    @property
    def arrays(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Weight and bias, and those of `dense` if the features are in it; empty before `fit`."""
        if self._head is None or self._features is None:
            return {}
        return {"weight": self._head.weight, "offset": self._head.bias, **self._features.arrays}

    def with_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """The fitted codec that `arrays` describe; ConfigError where one of them does not fit."""
        own = {name: arrays[name] for name in ("weight", "offset") if name in arrays}
        rest = {name: array for name, array in arrays.items() if name not in own}
        head = LinearHead.load(own, self.num_classes)
        shape = (head.num_features,)
        if rest:
            return self._with(head, DenseFeature(shape, self.row_bytes).with_arrays(rest))
        return self._with(head, SparseFeature(shape, self.row_bytes))

    def fit(self, sample_logits: Tensor, head: Tensor | None = None) -> Self:
        """The codec fitted to `sample_logits` [R, C] and to `head` [C, F], the weight of the teacher's last layer.

        Raises:
            ConfigError: there is no head, or the logits are not its product with features.
            NonFiniteOutputError: there is no row, or one is not finite.
        """
        check_logits(self, sample_logits)
        self.check_head(head)
        assert head is not None
        if len(sample_logits) == 0 or not bool(sample_logits.isfinite().all()):
            what = "no rows" if len(sample_logits) == 0 else "values that are not finite"
            raise NonFiniteOutputError(f"head is fitted to finite teacher logits; the sample holds {what}")
        fitted, features = fit_head(sample_logits[: self.max_fit_rows].detach().cpu().float(), head.detach().cpu())
        shape = (fitted.num_features,)
        if not fitted.is_invertible:  # with fewer classes than features, combinations are known, which are not sparse
            return self._with(fitted, DenseFeature(shape, self.row_bytes).fit(features))
        return self._with(fitted, CompactFeature(shape, self.row_bytes).fit(features.relu()))

    def check_head(self, head: Tensor | None) -> None:
        """Raises ConfigError if there is no head: to be called before a teacher runs for nothing."""
        if head is None:
            raise ConfigError("head needs a teacher that ends in a linear layer, and a build: use lowrank or float16")

    def _with(self, head: LinearHead, features: FeatureCodec) -> Self:
        codec = dataclasses.replace(self)
        object.__setattr__(codec, "_head", head)
        object.__setattr__(codec, "_features", features)
        return codec

    def is_encodable(self, logits: Tensor) -> Tensor:
        """Which rows of [B, C] are finite and not beyond 1e15; bool [B]."""
        return (logits.float().abs() <= MAX_SIZE).all(dim=1)

    @torch.no_grad()
    def encode(self, logits: Tensor) -> Tensor:
        """[B, C] float -> uint8 [B, row_bytes]."""
        check_logits(self, logits)
        head, features = self._fitted
        chunks = []
        for chunk in torch.split(logits.float(), _CHUNK_ROWS):
            found = head.features_of(F.pad(chunk, (0, 0, 0, _CHUNK_ROWS - len(chunk))))[: len(chunk)]
            least = 0.0 if isinstance(features, SparseFeature) else -MAX_SIZE
            chunks.append(features.encode(found.clamp(least, MAX_SIZE)))
        return torch.cat(chunks)  # always the same shapes, so that a row's bytes do not depend on its batch

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> log-probabilities [B, C]."""
        check_payload(self, payload)
        head, features = self._fitted
        weight, bias = head.on(payload.device)
        found = features.decode(payload).clamp(-MAX_SIZE, MAX_SIZE)  # of a damaged row: products stay finite
        with whole_products(payload.device):
            return F.log_softmax(torch.addmm(bias, found, weight.T), dim=1)
