"""A teacher's classes matched with those of the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kdkit.errors import ClassMismatchError
from kdkit.teachers.class_names import first_crossed
from kdkit.teachers.ensemble import TeacherEnsemble
from kdkit.teachers.teacher import Teacher

_logger = logging.getLogger(__name__)


def match_classes(teacher: Teacher, class_names: Sequence[str], *, needs_logits: bool = True) -> Teacher:
    """The teacher with its classes in the order of the data's, by name; with a literal class map as it is.

    Raises:
        ClassMismatchError: it has other classes, and its logits are needed.
    """
    tell_crossed_map(teacher, class_names)
    try:
        return teacher.for_classes(class_names)
    except ClassMismatchError:
        if needs_logits:
            raise
        return teacher


def tell_crossed_map(teacher: Teacher, class_names: Sequence[str]) -> None:
    """Logs a warning if a literal class map gives a class of the data another one, and its own to another."""
    for member in teacher.members if isinstance(teacher, TeacherEnsemble) else (teacher,):
        if member.has_literal_map:
            tell_crossed(class_names, member.class_names or (), f"the teacher {member.name!r}")


def tell_crossed(class_names: Sequence[str], given: Sequence[str], subject: str) -> None:
    """Logs a warning if a class map that is taken as it is crosses names.

    Args:
        class_names: names of the data's classes [C].
        given: names of the classes that the map gives them [C].
        subject: what has these classes.
    """
    if found := first_crossed(class_names, given):
        number, own, other = found
        _logger.warning(
            "the class_map gives class %d of the data, %r, the class %r of %s, and another class its %r: it is taken "
            "as it is",
            *(number, own, other, subject, own),
        )
