"""Distillation from a teacher's logits, live or cached."""

from __future__ import annotations

from torch import Tensor

from kdkit.tasks.distillation import DistillationTask
from kdkit.tasks.term import Samples
from kdkit.types import TeacherOutput


class LogitDistillationTask(DistillationTask):
    """Trains a student from labels and its teacher's logits; the arguments are those of DistillationTask."""

    def _forward_student(
        self, input: Tensor, teacher_output: TeacherOutput, samples: Samples
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        output = self._run_student(input)
        return output, output, {}
