"""Tasks: what one training step computes.

Where to look:
    distillation.py           the sum of the losses, and the base of all tasks with a teacher
    logit_distillation.py     logits; token_distillation.py, a second head; classification.py, labels only
    multi_label.py            targets of 0 and 1 for each class, with and without a teacher, and their mAP
    feature_distillation.py   features; feature_student.py holds its losses as modules, comparison.py
                              and exits.py
    term.py                   one loss with its weight, options and taps
    task.py                   the protocol, timm's TrainingTask; student_task.py adds student and criterion.py
    teacher.py                creates and checks the teacher; placement.py keeps its device and dtype
    observation.py            teacher top-1 and agreement in the log; gradient.py, gradient norms of the terms
"""

from kdkit.tasks.classification import ClassificationTask
from kdkit.tasks.criterion import LabelledCrossEntropy
from kdkit.tasks.distillation import DistillationTask
from kdkit.tasks.feature_distillation import FeatureDistillationTask
from kdkit.tasks.gradient import gradient_norms
from kdkit.tasks.logit_distillation import LogitDistillationTask
from kdkit.tasks.multi_label import MultiLabelClassificationTask, MultiLabelCrossEntropy, MultiLabelDistillationTask
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
    "MultiLabelClassificationTask",
    "MultiLabelCrossEntropy",
    "MultiLabelDistillationTask",
    "StudentTask",
    "TokenDistillationTask",
    "TrainingTask",
    "gradient_norms",
]
