"""Tasks to be tested row by row: task, loss, student and teacher, all of them real and small."""

from __future__ import annotations

from typing import Any

import timm
import torch
from support import tiny_model
from torch import Tensor, nn

from kdkit import FeatureDistillationTask, LogitDistillationTask, TokenDistillationTask, losses
from kdkit.tasks import DistillationTask, LossTerm

CNN, VIT = "test_resnet", "test_vit"
INNER = {CNN: ("stages.2", "stages.3", "stages.4"), VIT: ("blocks.1", "blocks.3", "blocks.5")}
LOGIT = [name for name in losses.available() if not losses.is_feature_loss(name)]
FEATURE = [name for name in losses.available() if losses.is_feature_loss(name)]
SEVERAL = [LossTerm("hint_mse", 2.0), LossTerm("kl", 0.5, {"temperature": 2.0})]

DISTRIBUTED = [
    ("logit", {"kl": 1.0, "bce": 2.0}, 0.5),
    ("feature", "several", 0.5),
    ("feature", "hint_mse", 0.0),  # no loss looks at the logits: the head has no gradient to wait for
    ("token", "soft", 0.5),
    ("token", "soft", 0.0),  # the main head learns from labels alone
]
"""Task, loss and task_loss_weight of what several ranks do."""


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 32, 32, generator=generator, dtype=torch.float64)
    return images, torch.randint(10, (count,), generator=generator)


def distilled_student(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(
        "deit_tiny_distilled_patch16_224", num_classes=10, img_size=32, depth=2, embed_dim=48, num_heads=3
    )


def feature_options(loss: str, student: str, teacher: str) -> dict[str, Any]:
    if loss in ("vitkd", "review"):
        return {"distill_loss": loss, "student_taps": INNER[student], "teacher_taps": INNER[teacher]}
    if loss == "attention":
        return {"distill_loss": loss, "student_taps": INNER[student][1], "teacher_taps": INNER[teacher][1]}
    return {"distill_loss": SEVERAL if loss == "several" else loss}


def make(
    kind: str, loss: Any, student: str, teacher: str, *, seed: int = 0, task_loss_weight: float = 0.5
) -> DistillationTask:
    said = tiny_model(teacher, seed=5)
    weights = {"task_loss_weight": task_loss_weight, "distill_loss_weight": 2.0}
    torch.manual_seed(seed)
    if kind == "feature":
        options = feature_options(loss, student, teacher)
        return FeatureDistillationTask(tiny_model(student, seed=seed), said, **options, **weights).double()
    if kind == "token":
        return TokenDistillationTask(distilled_student(seed), said, distill_loss=loss, **weights).double()
    return LogitDistillationTask(tiny_model(student, seed=seed), said, distill_loss=loss, **weights).double()
