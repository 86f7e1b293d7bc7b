"""The labels of a loss that needs them, and the policies for soft labels.

Dimensions: B batch, C classes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdkit.errors import ConfigError, ShapeError
from kdkit.types import to_compute_dtype

SoftLabels = Literal["error", "argmax", "expected"]


class Labels(NamedTuple):
    """The labels of a batch, and how much each sample counts; one without a label counts nothing."""

    target: Tensor
    """Index labels [B] int64, or soft labels [B, C] whose rows sum to 1; 0 throughout for a sample without a label."""
    weight: Tensor
    """Share of each sample in the mean over the labelled ones [B], summing to 1; all 0 if none is labelled."""

    def mean(self, per_row: Tensor) -> Tensor:
        """The mean [] of a loss [B] over the labelled samples; 0 if none is labelled."""
        return (per_row * self.weight).sum()


def resolve_target(loss: str, logits: Tensor, target: Tensor | None, soft_labels: SoftLabels) -> Labels:
    """Returns the labels of `target`, index labels [B] or soft labels [B, C], and the weight of each sample.

    A sample without a label has the index -1, or a row of zeros. A soft label of which only a part is known, because
    the image was mixed with an unlabelled one, has a row that sums to less than 1, which is the sample's weight.

    The policy `soft_labels` applies only when `target` is [B, C]: 'error' refuses it; 'argmax' takes each row's
    largest label (the index form then ignores a mixed label's second class); 'expected' keeps the soft labels, for the
    label-weighted mean of the index form.
    """
    check_soft_labels(soft_labels)
    if target is None:
        raise ConfigError(f"{loss} needs labels: pass target [B] or [B, C] beside logits {list(logits.shape)}")
    if target.ndim == 2:
        return _resolve_soft(loss, logits, target, soft_labels)
    _check_index(logits, target)
    known = (target >= 0).to(to_compute_dtype(logits).dtype)
    return Labels(target.long().clamp_min(0), known / known.sum().clamp_min(1))


def check_soft_labels(soft_labels: object) -> None:
    """Raises ConfigError unless `soft_labels` is one of the policies."""
    if soft_labels not in ("error", "argmax", "expected"):
        raise ConfigError(f"soft_labels must be 'error', 'argmax' or 'expected', got {soft_labels!r}")


def _resolve_soft(loss: str, logits: Tensor, target: Tensor, soft_labels: SoftLabels) -> Labels:
    if target.shape != logits.shape:
        raise ShapeError(_wrong_shape(logits, target))
    if soft_labels == "error":
        raise ShapeError(
            f"{loss} takes index labels [B] under soft_labels='error', got target {list(target.shape)} for logits "
            f"{list(logits.shape)}; soft_labels='expected' takes soft labels"
        )
    weights = target.detach().to(to_compute_dtype(logits).dtype)
    tiny = torch.finfo(weights.dtype).tiny
    total = weights.sum(dim=1)
    known = total.clamp(max=1)
    share = known / known.sum().clamp_min(tiny)
    if soft_labels == "argmax":
        return Labels(target.argmax(dim=1), share)
    return Labels(weights / total.clamp_min(tiny).unsqueeze(1), share)


def _check_index(logits: Tensor, target: Tensor) -> None:
    shapes = f"target {list(target.shape)} for logits {list(logits.shape)}"
    if target.shape != logits.shape[:1]:
        raise ShapeError(_wrong_shape(logits, target))
    if target.is_floating_point() or target.dtype == torch.bool:
        raise ShapeError(f"target [B] must hold integer labels, got {target.dtype} in {shapes}")
    # Reading values would wait for an accelerator, whose own bounds check catches a wrong label there.
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(target.min()), int(target.max())
        if low < -1 or high >= logits.shape[1]:
            raise ShapeError(
                f"target holds label {low if low < -1 else high}, outside 0..{logits.shape[1] - 1} (-1 for no label), "
                f"in {shapes}"
            )


def _wrong_shape(logits: Tensor, target: Tensor) -> str:
    return f"target must be [B] or [B, C] for logits {list(logits.shape)}, got {list(target.shape)}"
