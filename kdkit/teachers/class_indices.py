"""Class indices without names, compared with names: whether it can be told which classes they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from kdkit.errors import ClassMismatchError
from kdkit.teachers.class_map import composed
from kdkit.teachers.ensemble import TeacherEnsemble
from kdkit.teachers.imagenet import names_like
from kdkit.teachers.model_config import model_config
from kdkit.teachers.teacher import Teacher

_SHOWN = 5
_OF_STUDENTS = "--class-names, the names in the order of the indices"
_OF_TEACHERS = "a class_map of the teacher, a JSON list of its classes in the data's order"


class Classes(Protocol):
    """The part of a dataset that tells its classes."""

    class_names: Sequence[str] | None
    """Their names [C]."""

    @property
    def is_unlabelled(self) -> bool:
        """Whether no sample has a label."""
        ...


def check_classes_told(teacher: Teacher, data: Classes) -> None:
    """Checks that it can be told which class of the teacher each class of the data is.

    Raises:
        ClassMismatchError: one of the two has class indices alone, which may count the classes in any order.
    """
    if data.class_names is not None:
        check_names_of_teacher(teacher, data.class_names)
    elif not data.is_unlabelled:
        check_indices_of_teacher(teacher)


def check_indices_of_teacher(teacher: Teacher) -> None:
    """Checks that data without class names means this teacher's classes by its indices; a class map states it.

    Raises:
        ClassMismatchError: the teacher's classes have names, which the indices may count in any order.
    """
    for member in teacher.members if isinstance(teacher, TeacherEnsemble) else (teacher,):
        if member.class_map is None:
            check_tellable(member.class_names, f"the teacher {member.name!r}", _OF_TEACHERS)


def check_names_of_teacher(teacher: Teacher, names: Sequence[str]) -> None:
    """Checks that a teacher without class names may teach classes that have names; a class map states it.

    Raises:
        ClassMismatchError: kdkit trained the teacher on class indices, which may count the classes in any order.
    """
    for member in teacher.members if isinstance(teacher, TeacherEnsemble) else (teacher,):
        if member.class_map is None and member.names_like(names) is None:
            check_counted(member.model, names, f"the teacher {member.name!r}", _OF_TEACHERS)


def check_tellable(names: Sequence[str] | None, subject: str, remedy: str = _OF_STUDENTS) -> None:
    """Checks that data whose labels are class indices means by them the classes of these names [K].

    A table's label 2 is the class of index 2; of a model whose classes are '1', '2' and '10' it may mean either, and of
    one whose classes are owl, cat and dog any.

    Args:
        names: names of the model's classes [K]; None if it has none.
        subject: the model in the error.
        remedy: what to give besides names in the data.

    Raises:
        ClassMismatchError: the classes have names, other than their places and those of an ImageNet family.
    """
    if not names or is_tellable(names):
        return
    shown = f"({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
    if all(name.isascii() and name.isdigit() for name in names):
        raise ClassMismatchError(
            f"the labels of the data are class indices, and the classes of {subject} are named by numbers {shown}: "
            "which of the two a label means cannot be told; give class folders, or labels that are other names than "
            "numbers"
        )
    raise ClassMismatchError(
        f"the labels of the data are class indices, and the classes of {subject} have names {shown}: in which order "
        f"the indices count them cannot be told; give class folders, or names as labels, or {remedy}"
    )


def check_counted(model: nn.Module, names: Sequence[str], subject: str, remedy: str = _OF_STUDENTS) -> None:
    """Checks that classes with these names [C] are those that a model without names was trained on.

    Raises:
        ClassMismatchError: kdkit trained the model, on class indices alone.
    """
    if is_of_kdkit(model) and not is_tellable(names):
        shown = f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        raise ClassMismatchError(
            f"the data names its classes ({shown}), and {subject} was trained without names: in which order it has "
            f"them cannot be told; give {remedy}"
        )


def is_tellable(names: Sequence[str]) -> bool:
    """Whether class indices mean these classes: each is named by its place, or they are an ImageNet family in order."""
    names = composed(names)
    return names == tuple(map(str, range(len(names)))) or names == names_like(names, len(names))


def is_of_kdkit(model: nn.Module) -> bool:
    """Whether the model is of a run or an export of kdkit, which then has class names if its data had."""
    config = model_config(model)
    return config.get("tag") == TAG or bool(config.get(OF_A_RUN))


TAG = "kdkit"
"""The tag in the pretrained_cfg of an export."""
OF_A_RUN = "of_a_run"
"""The entry in the pretrained_cfg of the model in a run's folder; the tag there would change its fingerprint."""
