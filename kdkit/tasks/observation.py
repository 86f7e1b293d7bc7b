"""What is logged about teacher and student at every step: tensors on their device, so that no step waits for it.

Dimensions: B batch, C classes, k classes kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.losses import SparseLogProbs, to_compute_dtype

TeacherLogits = Tensor | SparseLogProbs


@torch.no_grad()
def observe(student_logits: Tensor, teacher_logits: TeacherLogits, target: Tensor | None) -> dict[str, Tensor]:
    """Scalars [] of one batch.

    'agreement_top1': how often student and teacher choose one class, percent. 'teacher_entropy': mean entropy of the
    teacher at temperature 1, nats. 'teacher_top1', with labels: how often the teacher's choice is the label, percent of
    the samples that have one (-1 is none); of a soft label, the share that it gives to the teacher's choice.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C], or sparse.
        target: class indices [B], soft labels [B, C], or None.
    """
    choice, entropy = _choice_and_entropy(teacher_logits)
    seen = {
        "agreement_top1": _percent(student_logits.argmax(dim=1) == choice),
        "teacher_entropy": entropy,
    }
    if target is not None:
        seen["teacher_top1"] = _top1(choice, target)
    return seen


def _choice_and_entropy(teacher: TeacherLogits) -> tuple[Tensor, Tensor]:
    """The class that the teacher finds likeliest [B], and its mean entropy []."""
    if isinstance(teacher, SparseLogProbs):
        top, each = teacher.soften(1.0)
        others = teacher.num_classes - top.shape[1]
        entropy = -(top.exp() * top).sum(dim=1) - others * each.exp() * each
        return teacher.ids.gather(1, top.argmax(dim=1, keepdim=True)).squeeze(1), entropy.mean()
    log_p = F.log_softmax(to_compute_dtype(teacher), dim=1)
    return log_p.argmax(dim=1), -(log_p.exp() * log_p).sum(dim=1).mean()


def _top1(choice: Tensor, target: Tensor) -> Tensor:
    if target.ndim == 2:
        return 100 * to_compute_dtype(target).gather(1, choice.unsqueeze(1)).mean()
    labelled = target >= 0
    return 100 * (labelled & (choice == target)).sum() / labelled.sum().clamp_min(1)


def _percent(hits: Tensor) -> Tensor:
    return 100 * hits.float().mean()
