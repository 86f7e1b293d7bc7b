"""Tasks: what one training step computes."""

from kdkit.tasks.classification import ClassificationTask
from kdkit.tasks.criterion import LabelledCrossEntropy
from kdkit.tasks.distillation import LogitDistillationTask
from kdkit.tasks.task import TrainingTask

__all__ = ["ClassificationTask", "LabelledCrossEntropy", "LogitDistillationTask", "TrainingTask"]
