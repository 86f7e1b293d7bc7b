"""The labels of a loss that needs them, and the policies for soft labels.

Dimensions: B batch, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdkit.errors import ConfigError, ShapeError

SoftLabels = Literal["error", "argmax", "expected"]


def resolve_target(loss: str, logits: Tensor, target: Tensor | None, soft_labels: SoftLabels) -> Tensor:
    """Returns index labels [B], or soft-label weights [B, C] whose rows sum to 1.

    The policy `soft_labels` applies only when `target` is [B, C]: 'error' refuses it; 'argmax' takes each row's
    largest label (the index form then ignores a mixed label's second class); 'expected' returns the weights, for the
    label-weighted mean of the index form.
    """
    if soft_labels not in ("error", "argmax", "expected"):
        raise ConfigError(f"soft_labels must be 'error', 'argmax' or 'expected', got {soft_labels!r}")
    if target is None:
        raise ConfigError(f"{loss} needs labels: pass target [B] or [B, C] beside logits {list(logits.shape)}")
    if target.ndim == 2:
        return _resolve_soft(loss, logits, target, soft_labels)
    _check_index(logits, target)
    return target.long()


def _resolve_soft(loss: str, logits: Tensor, target: Tensor, soft_labels: SoftLabels) -> Tensor:
    if target.shape != logits.shape:
        raise ShapeError(_wrong_shape(logits, target))
    if soft_labels == "error":
        raise ShapeError(
            f"{loss} takes index labels [B] under soft_labels='error', got target {list(target.shape)} for logits "
            f"{list(logits.shape)}; soft_labels='expected' takes soft labels"
        )
    if soft_labels == "argmax":
        return target.argmax(dim=1)
    weights = target.detach().to(logits.dtype)
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(logits.dtype).tiny)


def _check_index(logits: Tensor, target: Tensor) -> None:
    shapes = f"target {list(target.shape)} for logits {list(logits.shape)}"
    if target.shape != logits.shape[:1]:
        raise ShapeError(_wrong_shape(logits, target))
    if target.is_floating_point() or target.dtype == torch.bool:
        raise ShapeError(f"target [B] must hold integer labels, got {target.dtype} in {shapes}")
    # Reading values would wait for an accelerator, whose own bounds check catches a wrong label there.
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= logits.shape[1]:
            raise ShapeError(
                f"target holds label {low if low < 0 else high}, outside 0..{logits.shape[1] - 1}, in {shapes}"
            )


def _wrong_shape(logits: Tensor, target: Tensor) -> str:
    return f"target must be [B] or [B, C] for logits {list(logits.shape)}, got {list(target.shape)}"
