"""Who a task's teacher is, and what it said."""

from __future__ import annotations

from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from kdkit import losses
from kdkit.errors import ClassMismatchError, ConfigError
from kdkit.tasks.observation import TeacherLogits
from kdkit.teachers import Teacher, create_teacher
from kdkit.types import Normalization, TeacherOutput


def logits_of(said: TeacherOutput) -> TeacherLogits | None:
    """The logits as losses take them, dense or sparse; None where there are none."""
    if said.sparse is not None:
        sparse = said.sparse
        return losses.SparseLogProbs(sparse.ids, sparse.log_probs, sparse.num_classes, sparse.log_rest)
    return said.logits


def check_student(student_model: nn.Module) -> nn.Module:
    """The student as it is.

    Raises:
        ConfigError: it is no module, a timm name for instance.
    """
    if not isinstance(student_model, nn.Module):
        raise ConfigError(f"a student is an nn.Module, got {student_model!r}: timm.create_model makes one")
    return student_model


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
    _check_no_shared_weights(teacher, student_model)
    if not isinstance(teacher, Teacher):
        teacher = create_teacher(teacher, dtype=dtype, device=device)
    if num_classes is not None and teacher.num_classes is not None and num_classes != teacher.num_classes:
        raise ClassMismatchError(
            f"the teacher {teacher.name!r} has {teacher.num_classes} classes, the student {num_classes}: "
            "give the teacher a class_map, or the student num_classes="
            f"{teacher.num_classes}"
        )
    return teacher.for_input(Normalization.of(student))


def _check_no_shared_weights(teacher: str | nn.Module | Teacher, student_model: nn.Module) -> None:
    """A teacher is frozen: a student that shares a weight with it would not learn, and nothing would say so."""
    model = teacher.model if isinstance(teacher, Teacher) else teacher
    if isinstance(model, str) or not isinstance(model, nn.Module):
        return
    own = {id(parameter) for parameter in student_model.parameters()}
    if any(id(parameter) in own for parameter in model.parameters()):
        raise ConfigError(
            "student and teacher share weights, and a teacher's are frozen: pass a copy of the model, or 'ema' for the "
            "student's moving average"
        )
