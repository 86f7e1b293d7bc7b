"""Distillation through a second head: DeiT's distillation token."""

from __future__ import annotations

from typing import Any

from timm.utils import unwrap_model
from torch import Tensor, nn
from typing_extensions import Unpack

from kdkit.errors import ConfigError
from kdkit.runtime.model_errors import logits_of
from kdkit.tasks.distillation import DistillationTask, TaskOptions
from kdkit.tasks.student_task import Criterion
from kdkit.tasks.term import DistillLosses, Samples
from kdkit.teachers import Teacher
from kdkit.types import TeacherOutput

SOFT = "soft"


class TokenDistillationTask(DistillationTask):
    """Trains a student with two heads: one from labels, the other from the teacher's logits.

    In training mode the student returns (main logits, distillation logits), each [B, C]; 'output' holds the main ones.
    In eval mode it returns their mean, which then takes the place of both.

    Args:
        student_model: a timm model with `set_distilled_training`, e.g. deit_tiny_distilled_patch16_224.
        teacher, criterion, options: as for DistillationTask.
        distill_loss: "soft" (kl), "hard" (cross-entropy with the teacher's most probable class), or as for
            DistillationTask.

    Raises:
        ConfigError: the student has one head, or as for DistillationTask.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher: str | nn.Module | Teacher | None = None,
        criterion: Criterion | None = None,
        *,
        distill_loss: DistillLosses = SOFT,
        **options: Unpack[TaskOptions],
    ) -> None:
        student: Any = unwrap_model(student_model)
        if not hasattr(student, "set_distilled_training"):
            raise ConfigError(
                f"{type(student).__name__} has one head, TokenDistillationTask needs two: take a distilled model, such "
                "as deit_tiny_distilled_patch16_224, or LogitDistillationTask"
            )
        super().__init__(
            student_model,
            teacher,
            criterion,
            distill_loss="kl" if distill_loss == SOFT else distill_loss,
            **options,
        )
        student.set_distilled_training(True)

    def _forward_student(
        self, input: Tensor, teacher_output: TeacherOutput, samples: Samples
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        output = self.trainable_module(input)
        if isinstance(output, tuple) and len(output) == 2:
            main, distilled = output
        else:
            main = distilled = logits_of(output, "the student")
        return main, distilled, {}

    def _has_idle_head(self) -> bool:
        return self.task_loss_weight == 0
