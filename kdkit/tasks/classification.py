"""Plain supervised training, so that students with and without a teacher run through one loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdkit.losses import to_compute_dtype
from kdkit.tasks.source import check_student
from kdkit.tasks.task import TrainingTask

Criterion = Callable[[Tensor, Tensor], Tensor]


class ClassificationTask(TrainingTask):
    """A student against its labels.

    Args:
        student_model: the model to train.
        criterion: task loss of (logits [B, C], target); cross-entropy by default, which takes class indices [B] and
            soft labels [B, C] alike. Computed in float32 at least, whatever the autocast.
        device, dtype, verbose: as for TrainingTask.
    """

    def __init__(
        self,
        student_model: nn.Module,
        criterion: Criterion | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.trainable_module = check_student(student_model)
        self.criterion = criterion if criterion is not None else nn.CrossEntropyLoss()

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One step: 'loss' [] and 'output' [B, C] for images [B, 3, H, W] and target [B] or [B, C]."""
        output = self.trainable_module(input)
        return {"loss": self.criterion(to_compute_dtype(output), target), "output": output}
