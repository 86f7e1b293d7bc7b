"""kdkit: ask a teacher once, train any number of students from what it said.

Names load on first use, so that `import kdkit` and `kdkit --help` stay quick and load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdkit._version import __version__

if TYPE_CHECKING:
    from kdkit import losses as losses
    from kdkit.cache import open_cache as open_cache
    from kdkit.engine.build import build_cache as build_cache
    from kdkit.signals import TeacherOutput as TeacherOutput
    from kdkit.tasks import ClassificationTask as ClassificationTask
    from kdkit.tasks import LogitDistillationTask as LogitDistillationTask
    from kdkit.tasks import TrainingTask as TrainingTask
    from kdkit.teachers import Teacher as Teacher
    from kdkit.teachers import create_teacher as create_teacher

_HOME = {
    "ClassificationTask": "kdkit.tasks",
    "LogitDistillationTask": "kdkit.tasks",
    "Teacher": "kdkit.teachers",
    "TeacherOutput": "kdkit.signals",
    "TrainingTask": "kdkit.tasks",
    "build_cache": "kdkit.engine.build",
    "create_teacher": "kdkit.teachers",
    "losses": "kdkit",
    "open_cache": "kdkit.cache",
}

__all__ = [
    "ClassificationTask",
    "LogitDistillationTask",
    "Teacher",
    "TeacherOutput",
    "TrainingTask",
    "__version__",
    "build_cache",
    "create_teacher",
    "losses",
    "open_cache",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kdkit' has no attribute {name!r}")
    if _HOME[name] == "kdkit":
        return importlib.import_module(f"kdkit.{name}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
