"""Tasks: what one training step computes."""

from kdkit.tasks.classification import ClassificationTask
from kdkit.tasks.criterion import LabelledCrossEntropy
from kdkit.tasks.distillation import DistillationTask
from kdkit.tasks.feature_distillation import FeatureDistillationTask
from kdkit.tasks.gradient import gradient_norms
from kdkit.tasks.logit_distillation import LogitDistillationTask
from kdkit.tasks.student_task import StudentTask
from kdkit.tasks.task import TrainingTask
from kdkit.tasks.term import LossTerm
from kdkit.tasks.token_distillation import TokenDistillationTask

__all__ = [
    "ClassificationTask",
    "DistillationTask",
    "FeatureDistillationTask",
    "LabelledCrossEntropy",
    "LogitDistillationTask",
    "LossTerm",
    "StudentTask",
    "TokenDistillationTask",
    "TrainingTask",
    "gradient_norms",
]
