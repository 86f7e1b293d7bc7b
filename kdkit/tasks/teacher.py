"""The teacher of a task: created for the student's input, and checked against the student."""

from __future__ import annotations

from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from kdkit.errors import ClassMismatchError, ConfigError
from kdkit.teachers import Teacher, create_teacher
from kdkit.teachers.class_names import describe_count_mismatch
from kdkit.types import Normalization


def resolve_teacher(
    teacher: str | nn.Module | Teacher | None,
    student_model: nn.Module,
    device: torch.device | str | int | None,
    dtype: torch.dtype | None,
) -> Teacher | None:
    """Returns a frozen Teacher that takes images in the student's normalisation, or None.

    Args:
        teacher: as DistillationTask takes it.
        student_model: gives the normalisation.
        device, dtype: where a teacher given by name or as a module runs, and in what precision.

    Raises:
        ConfigError: the teacher shares a weight with the student.
    """
    if teacher is None:
        return None
    _check_no_shared_weights(teacher, student_model)
    if not isinstance(teacher, Teacher):
        teacher = create_teacher(teacher, dtype=dtype, device=device)
    return teacher.for_input(Normalization.of(student_model))


def check_same_classes(teacher: Teacher, student_model: nn.Module) -> None:
    """Raises ClassMismatchError if teacher and student have different numbers of classes."""
    student: Any = unwrap_model(student_model)
    num_classes = getattr(student, "num_classes", None)
    if num_classes is None or teacher.num_classes is None or num_classes == teacher.num_classes:
        return
    subject = f"the teacher {teacher.name!r}"
    if teacher.num_classes == 0:
        raise ClassMismatchError(describe_count_mismatch(subject, 0, ()))
    raise ClassMismatchError(
        f"{subject} has {teacher.num_classes} classes, the student {num_classes}: a student learns the teacher's "
        f"classes, so make it with num_classes={teacher.num_classes}, or pick {num_classes} of the teacher's with a "
        "class_map"
    )


def _check_no_shared_weights(teacher: str | nn.Module | Teacher, student_model: nn.Module) -> None:
    """A teacher is frozen: a student that shares a weight with it would silently not learn."""
    model = teacher.model if isinstance(teacher, Teacher) else teacher
    if isinstance(model, str) or not isinstance(model, nn.Module):
        return
    own = {id(parameter) for parameter in student_model.parameters()}
    if any(id(parameter) in own for parameter in model.parameters()):
        raise ConfigError(
            "student and teacher share weights, and a teacher's are frozen: pass a copy of the model, or 'ema' for the "
            "student's moving average"
        )
