"""Who a task's teacher is, and what it said."""

from __future__ import annotations

from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from kdkit import losses
from kdkit.errors import ClassMismatchError
from kdkit.signals import Normalization, TeacherOutput
from kdkit.tasks.observation import TeacherLogits
from kdkit.teachers import Teacher, create_teacher


def logits_of(said: TeacherOutput) -> TeacherLogits | None:
    """The logits as losses take them, dense or sparse; None where there are none."""
    if said.sparse is not None:
        sparse = said.sparse
        return losses.SparseLogProbs(sparse.ids, sparse.log_probs, sparse.num_classes, sparse.log_rest)
    return said.logits


def resolve_teacher(
    teacher: str | nn.Module | Teacher | None,
    student_model: nn.Module,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Teacher | None:
    """A frozen Teacher for this student's input and classes, or None."""
    if teacher is None:
        return None
    student: Any = unwrap_model(student_model)
    num_classes = getattr(student, "num_classes", None)
    if not isinstance(teacher, Teacher):
        teacher = create_teacher(teacher, dtype=dtype, device=device)
    if num_classes is not None and teacher.num_classes is not None and num_classes != teacher.num_classes:
        raise ClassMismatchError(
            f"the teacher {teacher.name!r} has {teacher.num_classes} classes, the student {num_classes}: "
            "give the teacher a class_map, or the student num_classes="
            f"{teacher.num_classes}"
        )
    return teacher.for_input(Normalization.of(student))
