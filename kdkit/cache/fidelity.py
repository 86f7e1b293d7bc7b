"""Fidelity: how close a codec's decoded rows are to the teacher's outputs. It is measured on rows of every view at
build, stored, and printed by `kdkit cache info`.

Dimensions: R rows, C classes, M measures of a row. For logits they are KL(teacher || decoded) in nats at T = 1, 2, 4,
both softened by temperature T, and whether the likeliest class is kept (1) or not (0); for features the length of the
difference divided by the length of the row, both as vectors. For multi-label logits the KL is that of the Bernoulli
distributions of all classes, summed. What no row of features tells alone is in `FeatureSums`, of view 0 only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.cache.codecs import Codec, RowCodec
from kdkit.cache.format.constants import ABOUT_MEAN, COSINE, TEMPERATURES
from kdkit.cache.types import Array
from kdkit.types import to_double

_ADDED_NUMBERS = 1 << 22  # of the rows that are added at a time, which bounds the memory
_EQUAL = 1e-12  # of the squared lengths of rows: a smaller spread about their mean is rounding


@dataclass
class FeatureSums:
    """Sums over rows of features and what they decode to, added up batch by batch."""

    rows: int = 0
    lost: float = 0.0
    """Squared length of the differences."""
    squares: float = 0.0
    """Squared length of the rows."""
    cosines: float = 0.0
    total: Tensor | float = 0.0
    """The rows, float64 [numel]."""

    def add(self, values: Tensor, decoded: Tensor) -> None:
        """Adds rows [B, ...] and what they decode to."""
        size = max(1, _ADDED_NUMBERS // max(1, values[:1].numel()))
        for some, of_some in zip(values.flatten(1).split(size), decoded.flatten(1).split(size), strict=True):
            rows, found = to_double(some), to_double(of_some)
            lengths = torch.stack([rows.norm(dim=1), found.norm(dim=1)])
            product = torch.where(lengths == 0, 1, lengths).prod(dim=0)
            both_zero = (lengths == 0).all(dim=0)
            self.rows += len(rows)
            self.lost += float((found - rows).square().sum())
            self.squares += float(lengths[0].square().sum())
            self.cosines += float(((rows * found).sum(dim=1) / product + both_zero).sum())
            self.total = self.total + rows.sum(dim=0).cpu()

    def summary(self) -> dict[str, float]:
        """Returns what they tell.

        "relative_error_about_mean": root of the squared differences over the squared distances from the mean row,
        unless all rows are equal; "cosine_mean": mean cosine between a row and what it decodes to, 1 if both are zero.
        """
        if self.rows == 0:
            return {}
        spread = self.squares - float(torch.as_tensor(self.total).square().sum()) / self.rows
        differ = spread > _EQUAL * self.squares
        about = {ABOUT_MEAN: (self.lost / spread) ** 0.5} if differ else {}
        return {**about, COSINE: self.cosines / self.rows}


def joined_sums(parts: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """What all parts have of `FeatureSums.summary`, each about its own mean; a part is (number of rows, summary)."""
    known = [(rows, found) for rows, found in parts if rows]
    whole = sum(rows for rows, _ in known)
    joined: dict[str, float] = {}
    for name, power in ((ABOUT_MEAN, 2), (COSINE, 1)):
        if known and all(name in found for _, found in known):
            joined[name] = (sum(rows * found[name] ** power for rows, found in known) / whole) ** (1 / power)
    return joined


@torch.no_grad()
def measure_rows(codec: RowCodec, values: Tensor, encoded: Tensor, sums: FeatureSums | None = None) -> Array:
    """How far each decoded row is from its original, float32 [R, M].

    Args:
        codec: fitted, on rows other than these.
        values: the teacher's outputs, [R, ...].
        encoded: the encoded rows, uint8 [R, row_bytes].
        sums: to which features are added.
    """
    decoded = codec.decode(encoded)
    if sums is not None and not isinstance(codec, Codec):
        sums.add(values, decoded)
    if not isinstance(codec, Codec):
        measures = _measure_features(values, decoded)
    else:
        measures = _measure_logits(values, decoded, sigmoid_divergence if codec.multi_label else kl_divergence)
    return torch.stack(measures, dim=1).float().cpu().numpy()


def summarise_rows(measures: Array) -> dict[str, float]:
    """Summarises the measures of one or more rows, [R, M].

    Returns:
        "rows", their number; for logits "kl_mean_tT" and "kl_p99_tT" for T = 1, 2, 4, mean and 99th percentile over the
        rows, and "top1_agreement", the share of rows whose likeliest class is kept; for features "relative_error_mean"
        and "relative_error_max".
    """
    columns = measures.astype(np.float64).T
    found = {"rows": float(len(measures))}
    if len(columns) == 1:
        return found | {"relative_error_mean": float(columns[0].mean()), "relative_error_max": float(columns[0].max())}
    for temperature, values in zip(TEMPERATURES, columns, strict=False):
        found[f"kl_mean_t{temperature}"] = float(values.mean())
        found[f"kl_p99_t{temperature}"] = float(np.quantile(values, 0.99))
    return found | {"top1_agreement": float(columns[-1].mean())}


def summarise_views(views: Sequence[Array], stored: Mapping[str, float]) -> list[dict[str, float]]:
    """What `summarise_rows` gives of each view, and for features "relative_error_p90", the 90th percentile over rows.

    View 0 also has what is `stored` of `FeatureSums.summary`.
    """
    found = [summarise_rows(measures) for measures in views]
    for summary, measures in zip(found, views, strict=True):
        if "relative_error_mean" in summary:
            summary["relative_error_p90"] = float(np.quantile(measures[:, 0].astype(np.float64), 0.9))
    found[0] |= {name: stored[name] for name in (ABOUT_MEAN, COSINE) if name in stored}
    return found


def kl_divergence(logits: Tensor, decoded: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(decoded)) of each row, [R], in float64."""
    log_p, log_q = F.log_softmax(to_double(logits), dim=1), F.log_softmax(to_double(decoded), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def sigmoid_divergence(logits: Tensor, decoded: Tensor) -> Tensor:
    """KL between the Bernoulli distributions sigmoid(logits) and sigmoid(decoded), summed over the classes, [B]."""
    z_p, z_q = to_double(logits), to_double(decoded)
    p = z_p.sigmoid()
    present, lacking = F.logsigmoid(z_p) - F.logsigmoid(z_q), F.logsigmoid(-z_p) - F.logsigmoid(-z_q)
    return (p * present + (1 - p) * lacking).sum(dim=1)


def _measure_logits(logits: Tensor, decoded: Tensor, divergence: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    logits = logits.float()
    softened = [divergence(logits / temperature, decoded / temperature) for temperature in TEMPERATURES]
    return [*(values.clamp_min(0) for values in softened), to_double(decoded.argmax(1) == logits.argmax(1))]


def _measure_features(features: Tensor, decoded: Tensor) -> list[Tensor]:
    rows = features.float().flatten(1)
    error = (decoded.flatten(1) - rows).norm(dim=1)
    return [error / rows.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)]
