"""Teachers: frozen timm models that normalise for themselves."""

from kdkit.teachers.factory import create_teacher
from kdkit.teachers.teacher import Teacher

__all__ = ["Teacher", "create_teacher"]
