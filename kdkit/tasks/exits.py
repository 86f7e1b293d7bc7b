"""A loss on exits as a module: the student's features at its taps, against the teacher's logits and the labels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdkit.errors import ConfigError
from kdkit.tasks.comparison import Widths
from kdkit.tasks.term import LossTerm, bound_loss

LOGITS = "logits"
"""The name under which the teacher's logits reach a loss that has no tap of the teacher."""


class Exits(nn.Module):
    """One term whose loss makes logits of the student's features.

    Args:
        term: with the student's taps named, and none of the teacher.
        student_width: tap of the student -> its width D.
        num_classes: classes C of the student; None if that is not known.

    Raises:
        ConfigError: the number of classes is not known.
    """

    needs: tuple[str, ...] = ("target",)

    def __init__(self, term: LossTerm, student_width: Widths, num_classes: int | None) -> None:
        super().__init__()
        if not num_classes:
            raise ConfigError(f"the loss {term.name!r} needs a student with classes, got num_classes={num_classes}")
        self.term = term
        widths = [student_width(tap) for tap in term.student_taps]
        self.loss = bound_loss(term, student_widths=widths, num_classes=num_classes)

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], samples: Mapping[str, Tensor]
    ) -> Tensor:
        """The unweighted loss [] of the student's features by tap, and the teacher's logits [B, C]."""
        features = [student[tap] for tap in self.term.student_taps]
        with torch.autocast(features[0].device.type, enabled=False):
            return self.loss(features, teacher[LOGITS], samples["target"])
