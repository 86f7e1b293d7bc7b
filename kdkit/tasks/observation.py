"""Observations of teacher and student that are logged at every step: tensors on their device, which no step awaits.

Dimensions: B batch, C classes, k classes kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.types import SparseLogits, TeacherMember, to_compute_dtype

TeacherLogits = Tensor | SparseLogits


@torch.no_grad()
def observe(student_logits: Tensor, teacher_logits: TeacherLogits, target: Tensor | None) -> dict[str, Tensor]:
    """Returns scalars [] of one batch for the log.

    'agreement_top1': samples for which student and teacher predict the same class, percent. 'teacher_entropy': mean
    entropy of the teacher's distribution at temperature 1, nats. 'teacher_top1', if there are labels: labelled
    samples for which the teacher predicts the label, percent (-1 is no label); for a soft label, the share that it
    gives to the teacher's prediction; NaN if no sample is labelled.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C], or sparse.
        target: class indices [B], soft labels [B, C], or None.
    """
    choice, entropy = _choice_and_entropy(teacher_logits)
    observed = {
        "agreement_top1": _percent(student_logits.argmax(dim=1) == choice),
        "teacher_entropy": entropy,
    }
    if target is not None:
        observed["teacher_top1"] = _top1(choice, target)
    return observed


@torch.no_grad()
def observe_members(
    student_logits: Tensor, members: Sequence[TeacherMember], target: Tensor | None
) -> dict[str, Tensor]:
    """Returns 'agreement_top1_NAME' and, if there are labels, 'teacher_top1_NAME' of each of several teachers, as
    `observe` does for one.
    """
    observed = {}
    for name, logits, _ in members:
        choice = logits.argmax(dim=1)
        observed[f"agreement_top1_{name}"] = _percent(student_logits.argmax(dim=1) == choice)
        if target is not None:
            observed[f"teacher_top1_{name}"] = _top1(choice, target)
    return observed


def num_classes_of(teacher_logits: TeacherLogits) -> int:
    """Returns the number of classes C of dense or sparse logits."""
    return teacher_logits.num_classes if isinstance(teacher_logits, SparseLogits) else teacher_logits.shape[1]


def _choice_and_entropy(teacher: TeacherLogits) -> tuple[Tensor, Tensor]:
    """The teacher's most probable class [B], and its mean entropy []."""
    if isinstance(teacher, SparseLogits):
        top, each = teacher.soften(1.0)
        others = teacher.num_classes - top.shape[1]
        entropy = -(top.exp() * top).sum(dim=1) - others * each.exp() * each
        return teacher.ids.gather(1, top.argmax(dim=1, keepdim=True)).squeeze(1), entropy.mean()
    log_p = F.log_softmax(to_compute_dtype(teacher), dim=1)
    return log_p.argmax(dim=1), -(log_p.exp() * log_p).sum(dim=1).mean()


def _top1(choice: Tensor, target: Tensor) -> Tensor:
    if target.ndim == 2:
        target = to_compute_dtype(target)
        labelled = target.sum(dim=1).clamp(max=1).sum()  # a mixed sample's unlabelled share is missing in its row
        return 100 * target.gather(1, choice.unsqueeze(1)).sum() / labelled
    labelled = target >= 0
    return 100 * (labelled & (choice == target)).sum() / labelled.sum()


def _percent(hits: Tensor) -> Tensor:
    return 100 * hits.float().mean()
