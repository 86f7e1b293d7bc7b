"""Fidelity: how close a codec's decoded rows are to the teacher's outputs. It is measured on rows of every view at
build, stored, and printed by `kdkit cache info`.

Dimensions: R rows, C classes, M measures of a row. For logits they are KL(teacher || decoded) in nats at T = 1, 2, 4,
both softened by temperature T, and whether the likeliest class is kept (1) or not (0); for features the length of the
difference divided by the length of the row, both as vectors. For multi-label logits the KL is that of the Bernoulli
distributions of all classes, summed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.cache.codecs import Codec, RowCodec
from kdkit.cache.format.constants import TEMPERATURES
from kdkit.cache.types import Array
from kdkit.types import to_double


@torch.no_grad()
def measure_rows(codec: RowCodec, values: Tensor, encoded: Tensor) -> Array:
    """How far each decoded row is from its original, float32 [R, M].

    Args:
        codec: fitted, on rows other than these.
        values: the teacher's outputs, [R, ...].
        encoded: the encoded rows, uint8 [R, row_bytes].
    """
    decoded = codec.decode(encoded)
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


def summarise_view(measures: Array) -> dict[str, float]:
    """What `summarise_rows` gives, and for features "relative_error_p90", the 90th percentile over the rows."""
    found = summarise_rows(measures)
    if "relative_error_mean" in found:
        found["relative_error_p90"] = float(np.quantile(measures[:, 0].astype(np.float64), 0.9))
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
