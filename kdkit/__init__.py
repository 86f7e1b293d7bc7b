"""kdkit: run a teacher once, train any number of students from its cached outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdkit._lazy import lazy_exports
from kdkit._version import __version__

if TYPE_CHECKING:
    from kdkit import importers as importers
    from kdkit import losses as losses
    from kdkit.building.build import build_cache as build_cache
    from kdkit.building.extend import extend_cache as extend_cache
    from kdkit.building.verify import verify_cache as verify_cache
    from kdkit.cache import CacheSpec as CacheSpec
    from kdkit.cache import CacheWriter as CacheWriter
    from kdkit.cache import open_cache as open_cache
    from kdkit.data import create_loader as create_loader
    from kdkit.dataset import open_dataset as open_dataset
    from kdkit.recipe import ViewRecipe as ViewRecipe
    from kdkit.tasks import ClassificationTask as ClassificationTask
    from kdkit.tasks import FeatureDistillationTask as FeatureDistillationTask
    from kdkit.tasks import LogitDistillationTask as LogitDistillationTask
    from kdkit.tasks import MultiLabelClassificationTask as MultiLabelClassificationTask
    from kdkit.tasks import MultiLabelDistillationTask as MultiLabelDistillationTask
    from kdkit.tasks import TokenDistillationTask as TokenDistillationTask
    from kdkit.tasks import TrainingTask as TrainingTask
    from kdkit.teachers import Teacher as Teacher
    from kdkit.teachers import TeacherEnsemble as TeacherEnsemble
    from kdkit.teachers import create_teacher as create_teacher
    from kdkit.types import Batch as Batch
    from kdkit.types import TeacherOutput as TeacherOutput

__all__ = [
    "Batch",
    "CacheSpec",
    "CacheWriter",
    "ClassificationTask",
    "FeatureDistillationTask",
    "LogitDistillationTask",
    "MultiLabelClassificationTask",
    "MultiLabelDistillationTask",
    "Teacher",
    "TeacherEnsemble",
    "TeacherOutput",
    "TokenDistillationTask",
    "TrainingTask",
    "ViewRecipe",
    "__version__",
    "build_cache",
    "create_loader",
    "create_teacher",
    "extend_cache",
    "importers",
    "losses",
    "open_cache",
    "open_dataset",
    "verify_cache",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Batch": "kdkit.types",
        "CacheSpec": "kdkit.cache",
        "CacheWriter": "kdkit.cache",
        "ClassificationTask": "kdkit.tasks",
        "FeatureDistillationTask": "kdkit.tasks",
        "LogitDistillationTask": "kdkit.tasks",
        "MultiLabelClassificationTask": "kdkit.tasks",
        "MultiLabelDistillationTask": "kdkit.tasks",
        "Teacher": "kdkit.teachers",
        "TeacherEnsemble": "kdkit.teachers",
        "TeacherOutput": "kdkit.types",
        "TokenDistillationTask": "kdkit.tasks",
        "TrainingTask": "kdkit.tasks",
        "ViewRecipe": "kdkit.recipe",
        "build_cache": "kdkit.building.build",
        "create_loader": "kdkit.data",
        "create_teacher": "kdkit.teachers",
        "extend_cache": "kdkit.building.extend",
        "importers": "kdkit.importers",
        "losses": "kdkit.losses",
        "open_cache": "kdkit.cache",
        "open_dataset": "kdkit.dataset",
        "verify_cache": "kdkit.building.verify",
    },
)
