"""Teachers: frozen timm models that normalise their own input, and the cards that describe them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdkit._lazy import lazy_exports

if TYPE_CHECKING:
    from kdkit.teachers.card import TeacherCard as TeacherCard
    from kdkit.teachers.card import list_cards as list_cards
    from kdkit.teachers.card import load_card as load_card
    from kdkit.teachers.ensemble import TeacherEnsemble as TeacherEnsemble
    from kdkit.teachers.factory import create_teacher as create_teacher
    from kdkit.teachers.teacher import Teacher as Teacher

__all__ = ["Teacher", "TeacherCard", "TeacherEnsemble", "create_teacher", "list_cards", "load_card"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Teacher": "kdkit.teachers.teacher",
        "TeacherCard": "kdkit.teachers.card",
        "TeacherEnsemble": "kdkit.teachers.ensemble",
        "create_teacher": "kdkit.teachers.factory",
        "list_cards": "kdkit.teachers.card",
        "load_card": "kdkit.teachers.card",
    },
)
