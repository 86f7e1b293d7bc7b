"""Distillation losses: pure functions f(student_logits, teacher_logits, ...), and a registry of them by name."""

from kdkit.losses._checks import to_compute_dtype
from kdkit.losses.kl import kl
from kdkit.losses.registry import available, create

__all__ = ["available", "create", "kl", "to_compute_dtype"]
