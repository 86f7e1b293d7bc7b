"""Tasks to be tested row by row: task, loss, student and teacher, all of them real and small."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
import torch
from support import tiny_model
from torch import Tensor, nn

from kdkit import FeatureDistillationTask, LogitDistillationTask, TokenDistillationTask, losses
from kdkit.cache import CachedTeacher
from kdkit.tasks import DistillationTask, LossTerm

CNN, VIT = "test_resnet", "test_vit"
INNER = {CNN: ("stages.2", "stages.3", "stages.4"), VIT: ("blocks.1", "blocks.3", "blocks.5")}
LOGIT = [name for name in losses.available() if not losses.is_feature_loss(name)]
REMEMBERING = [name for name in losses.available() if losses.loss_spec(name).needs_rows]
"""Losses that a step changes: tests/tasks/test_remembering.py has them."""
FEATURE = [name for name in losses.available() if losses.is_feature_loss(name) and name not in REMEMBERING]
TEACHER_SEED = 5
SEVERAL = [LossTerm("hint_mse", 2.0), LossTerm("kl", 0.5, {"temperature": 2.0})]


class Row(NamedTuple):
    """One row of the table of tasks."""

    kind: str
    loss: Any
    student: str
    teacher: str
    task_loss_weight: float = 0.5

    @property
    def is_mean_over_samples(self) -> bool:
        """Whether no sample's loss depends on the others, nor on a draw."""
        names = [self.loss] if isinstance(self.loss, str) else list(self.loss)
        return not any(name in (*COMPARING_SAMPLES, *DRAWING) for name in names)

    def __str__(self) -> str:
        loss = self.loss if isinstance(self.loss, str) else "+".join(self.loss)
        return f"{self.kind}, {loss}, {self.student} from {self.teacher}, task loss x {self.task_loss_weight}"


LOSSES = [
    *(("logit", loss) for loss in LOGIT),
    ("logit", {"kl": 1.0, "dist": 2.0}),
    *(("feature", loss) for loss in [*FEATURE, "several"]),
    *(("token", loss) for loss in ["soft", *LOGIT]),
]
"""Every task with every loss."""


def pairs(kind: str, loss: Any) -> list[tuple[str, str]]:
    """Students and teachers: each kind of model is either once; features are also compared between equal models."""
    if loss == "vitkd":
        return [(VIT, VIT)]  # it compares blocks of one width
    if loss == "mgd":
        return [(CNN, VIT)]  # tokens are maps as well
    if kind == "token":
        return [(VIT, CNN)]
    return [(CNN, VIT), (VIT, CNN), *([(CNN, CNN)] if kind == "feature" else [])]


ROWS = [Row(kind, loss, *pair) for kind, loss in LOSSES for pair in pairs(kind, loss)]
COMPARING_SAMPLES = ("dist", "mlkd", "similarity", "pkt", "rkd_distance", "rkd_angle")
"""Losses that see how the samples of a batch relate: on several ranks, those of a rank."""
DRAWING = ("vitkd", "mgd")
"""Losses that draw random numbers."""
IDLE_HEADS = [
    Row("feature", "hint_mse", VIT, CNN, task_loss_weight=0.0),  # no loss uses the logits
    Row("token", "soft", VIT, CNN, task_loss_weight=0.0),  # the main head learns from labels alone
]
"""Rows in which a head has no gradient that DistributedDataParallel could wait for."""


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 32, 32, generator=generator, dtype=torch.float64)
    return images, torch.randint(10, (count,), generator=generator)


def distilled_student(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(
        "deit_tiny_distilled_patch16_224", num_classes=10, img_size=32, depth=2, embed_dim=48, num_heads=3
    )


def feature_options(loss: Any, student: str, teacher: str) -> dict[str, Any]:
    if loss in ("vitkd", "review"):
        return {"distill_loss": loss, "student_taps": INNER[student], "teacher_taps": INNER[teacher]}
    if loss == "ofa_exits":
        return {"distill_loss": loss, "student_taps": INNER[student]}
    if loss in ("attention", "mgd"):
        return {"distill_loss": loss, "student_taps": INNER[student][1], "teacher_taps": INNER[teacher][1]}
    return {"distill_loss": SEVERAL if loss == "several" else loss}


def every_loss(kind: str, student: str, teacher: str) -> list[LossTerm]:
    """All losses that a kind of task accepts, as terms of one task: each term has the same value as alone."""
    if kind != "feature":
        return [LossTerm(loss) for loss in LOGIT]
    chosen = [feature_options(loss, student, teacher) for loss in FEATURE if (student, teacher) in pairs(kind, loss)]
    return [*(LossTerm(options.pop("distill_loss"), **options) for options in chosen), LossTerm("kl")]


def make(
    kind: str,
    loss: Any,
    student: str,
    teacher: str,
    task_loss_weight: float = 0.5,
    *,
    seed: int = 0,
    cache: CachedTeacher | None = None,
) -> DistillationTask:
    """The task of a row in float64, with its live teacher, or for the outputs of a cache."""
    live = tiny_model(teacher, seed=TEACHER_SEED) if cache is None else None
    options: Any = {"task_loss_weight": task_loss_weight, "distill_loss_weight": 2.0}
    torch.manual_seed(seed)
    if kind == "feature":
        options |= feature_options(loss, student, teacher)
        if cache is not None:
            head = tiny_model(teacher, seed=TEACHER_SEED).get_classifier().weight
            options |= {"teacher_widths": cache.feature_widths, "head_weight": head}
        return FeatureDistillationTask(tiny_model(student, seed=seed), live, **options).double()
    if kind == "token":
        return TokenDistillationTask(distilled_student(seed), live, distill_loss=loss, **options).double()
    return LogitDistillationTask(tiny_model(student, seed=seed), live, distill_loss=loss, **options).double()
