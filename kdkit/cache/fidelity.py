"""What a codec keeps of a teacher: measured on real rows, kept in the cache, printed by `kdkit cache info`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.cache.codecs import Codec, RowCodec

TEMPERATURES = (1, 2, 4)
_BATCH = 1024


@torch.no_grad()
def measure_fidelity(codec: Codec, logits: Tensor) -> dict[str, float]:
    """How far decoded rows are from what was encoded.

    Args:
        codec: fitted, on rows other than these.
        logits: the teacher's, [R, C].

    Returns:
        "rows", their number; "kl_mean_tT" and "kl_p99_tT" for T = 1, 2, 4, mean and 99th percentile over the rows of
        KL(teacher || decoded) in nats, both softened by temperature T; and "top1_agreement", the share of rows whose
        likeliest class is kept.
    """
    divergences: dict[int, list[Tensor]] = {temperature: [] for temperature in TEMPERATURES}
    agree = 0
    for rows in logits.float().split(_BATCH):
        decoded = codec.decode(codec.encode(rows))
        agree += int((decoded.argmax(1) == rows.argmax(1)).sum())
        for temperature in TEMPERATURES:
            divergences[temperature].append(kl_divergence(rows / temperature, decoded / temperature))
    fidelity = {"rows": float(len(logits)), "top1_agreement": agree / len(logits)}
    for temperature, pieces in divergences.items():
        values = torch.cat(pieces).clamp_min(0)
        fidelity[f"kl_mean_t{temperature}"] = float(values.mean())
        fidelity[f"kl_p99_t{temperature}"] = float(values.quantile(0.99))
    return fidelity


@torch.no_grad()
def measure_feature_fidelity(codec: RowCodec, features: Tensor) -> dict[str, float]:
    """How far decoded rows are from what was encoded.

    Args:
        codec: of features.
        features: the teacher's, [R, ...].

    Returns:
        "rows", their number; "relative_error_mean" and "relative_error_max" over the rows of the length of the
        difference divided by the length of the row, both as vectors.
    """
    rows = features.float().flatten(1)
    error = (codec.decode(codec.encode(features)).flatten(1) - rows).norm(dim=1)
    relative = error / rows.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return {
        "rows": float(len(rows)),
        "relative_error_mean": float(relative.mean()),
        "relative_error_max": float(relative.max()),
    }


def kl_divergence(logits: Tensor, decoded: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(decoded)) of each row, [R], in float64."""
    log_p, log_q = F.log_softmax(logits.double(), dim=1), F.log_softmax(decoded.double(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
