"""OFA's exits: intermediate features as logits, each against the teacher's.

Dimensions: B batch, C classes, D width, H W height and width, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdkit.errors import ConfigError, ShapeError
from kdkit.losses._checks import check_positive
from kdkit.losses._features import check_width
from kdkit.losses._target import SoftLabels, check_soft_labels
from kdkit.losses.ofa import ofa
from kdkit.losses.registry import feature_loss


def ofa_exits(
    exit_logits: Sequence[Tensor],
    teacher_logits: Tensor,
    target: Tensor,
    *,
    eps: float = 1.0,
    temperature: float = 1.0,
    soft_labels: SoftLabels = "expected",
) -> Tensor:
    """The sum over exits of `ofa`.

    Args:
        exit_logits: logits [B, C] of each exit (`OFAExits` makes them).
        teacher_logits: [B, C]; no gradient flows into them.
        target: index labels [B], or soft labels [B, C], as for `ofa`.
        eps, temperature, soft_labels: as for `ofa`.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Hao et al. 2023, "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
        Distillation"; Hao840/OFAKD distillers/ofa.py, whose exits have more layers. Usual weight 1.
    """
    if not exit_logits:
        raise ShapeError("ofa_exits needs the logits of at least one exit, got none")
    options = {"eps": eps, "temperature": temperature}
    losses = [ofa(logits, teacher_logits, target, soft_labels=soft_labels, **options) for logits in exit_logits]
    return torch.stack(losses).sum()


@feature_loss("ofa_exits", taps="several", needs_target=True, has_exits=True)
class OFAExits(nn.Module):
    """`ofa_exits` after a trainable exit of each feature: its mean over positions, and a linear layer.

    Args:
        student_widths: D of the student's features.
        num_classes: C.
        eps, temperature, soft_labels: as for `ofa`.
    """

    def __init__(
        self,
        student_widths: Sequence[int],
        num_classes: int,
        *,
        eps: float = 1.0,
        temperature: float = 1.0,
        soft_labels: SoftLabels = "expected",
    ) -> None:
        super().__init__()
        if not student_widths:
            raise ConfigError("ofa_exits needs the width of at least one feature, got none")
        check_positive("ofa_exits: eps", eps)
        check_positive("ofa_exits: temperature", temperature)
        check_soft_labels(soft_labels)
        self.eps, self.temperature, self.soft_labels = eps, temperature, soft_labels
        self.widths = tuple(student_widths)
        self.exits = nn.ModuleList(nn.Linear(width, num_classes) for width in student_widths)

    def forward(self, student_features: Sequence[Tensor], teacher_logits: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar of shape [].

        Args:
            student_features: [B, D], [B, N, D] or [B, D, H, W], as many as there are exits.
            teacher_logits: [B, C]; no gradient flows into them.
            target: index labels [B], or soft labels [B, C].
        """
        if len(student_features) != len(self.exits):
            raise ShapeError(f"ofa_exits has {len(self.exits)} exits, got {len(student_features)} features")
        pooled = [_pooled(feature) for feature in student_features]
        for feature, width in zip(pooled, self.widths, strict=True):
            check_width(feature, width)
        with torch.autocast(pooled[0].device.type, enabled=False):
            dtype = next(self.parameters()).dtype
            logits = [layer(feature.to(dtype)) for layer, feature in zip(self.exits, pooled, strict=True)]
        options = {"eps": self.eps, "temperature": self.temperature}
        return ofa_exits(logits, teacher_logits, target, soft_labels=self.soft_labels, **options)


def _pooled(feature: Tensor) -> Tensor:
    """The mean over positions [B, D]."""
    if feature.ndim not in (2, 3, 4):
        raise ShapeError(f"ofa_exits takes features [B, D], [B, N, D] or [B, D, H, W], got {list(feature.shape)}")
    return feature if feature.ndim == 2 else feature.mean(1) if feature.ndim == 3 else feature.mean((2, 3))
