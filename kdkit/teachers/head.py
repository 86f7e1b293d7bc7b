"""The weight of a teacher's classifier, for what cannot do without it."""

from __future__ import annotations

from torch import Tensor

from kdkit.errors import ConfigError
from kdkit.teachers.class_map import MISSING
from kdkit.teachers.ensemble import TeacherEnsemble
from kdkit.teachers.teacher import Teacher


def weight_of_head(teacher: Teacher, subject: str) -> Tensor:
    """Returns the weight [C, D] of the teacher's classifier.

    Args:
        teacher: the teacher.
        subject: what needs it, e.g. "the loss 'srrl'".

    Raises:
        ConfigError: the teacher has no such weight; says why.
    """
    weight = teacher.head_weight
    if weight is not None:
        return weight
    if teacher.num_classes == 0:
        reason = "has no head"
    elif isinstance(teacher, TeacherEnsemble):
        reason = "has one classifier for each member: give one teacher"
    elif MISSING in (teacher.class_map or ()):
        reason = "lacks a class of its class map"
    else:
        reason = "does not end in a linear layer"
    raise ConfigError(f"{subject} needs the classifier of its teacher, and the teacher {teacher.name!r} {reason}")
