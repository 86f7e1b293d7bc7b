"""CompactFeature: whichever of `sparse` and `dense` loses less of the features at hand.

Dimensions: R rows of a sample; ... the shape of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdkit.cache.codecs.dense_feature import DenseFeature
from kdkit.cache.codecs.feature import FeatureCodec, SizedFeature
from kdkit.cache.codecs.sparse import SparseFeature
from kdkit.errors import ConfigError

_HELD_OUT = 4  # each fourth row of the sample, on which both are compared
_COMPARED = 256  # rows, at most


@dataclass(frozen=True)
class CompactFeature(SizedFeature):
    """The name by which a build chooses: `fit` gives the fitted codec that a cache then names, `sparse` or `dense`."""

    name: ClassVar[str] = "compact"
    choices: ClassVar[tuple[str, ...]] = (SparseFeature.name, DenseFeature.name)

    @property
    def needs_fit(self) -> bool:
        """True: only what `fit` returns encodes."""
        return True

    def fit(self, sample: Tensor) -> FeatureCodec:
        """The one with the smaller mean of |x - x^|^2 / |x|^2 over rows that neither was fitted to, fitted to all rows.

        Args:
            sample: rows [R, ...], each of another image: with views of one image on both sides, the choice would
                favour the fit.

        Raises:
            ShapeError: the rows have another shape.
            NonFiniteOutputError: there is no row, or one is not encodable.
        """
        sparse = SparseFeature(self.shape, self.row_bytes).suited_to(sample)
        dense = DenseFeature(self.shape, self.row_bytes)
        if not dense.is_possible or len(sample) == 1:  # a fit to one row alone would lose nothing of it
            return sparse
        held = torch.arange(len(sample)) % _HELD_OUT == 0
        compared, fitted = sample[held][:_COMPARED], dense.fit(sample[~held])
        return dense.fit(sample) if _error(fitted, compared) < _error(sparse, compared) else sparse

    def encode(self, values: Tensor) -> Tensor:
        """Raises ConfigError."""
        raise ConfigError("compact only chooses: use codec = codec.fit(sample_features), which is sparse or dense")

    def decode(self, payload: Tensor) -> Tensor:
        """Raises ConfigError."""
        return self.encode(payload)


def _error(codec: FeatureCodec, rows: Tensor) -> float:
    """Mean over the rows of |x - x^|^2 / |x|^2."""
    wanted = rows.detach().cpu().float()
    lost = (codec.decode(codec.encode(wanted)) - wanted).flatten(1).norm(dim=1)
    return float((lost / wanted.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)).square().mean())
