"""Distillation from a teacher's logits, live or cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from kdkit import losses
from kdkit.errors import ClassMismatchError, ConfigError, MissingTeacherError
from kdkit.losses import to_compute_dtype
from kdkit.signals import Batch, Normalization, TeacherOutput
from kdkit.tasks.classification import Criterion
from kdkit.tasks.task import TrainingTask
from kdkit.teachers import Teacher, create_teacher

DistillLoss = Callable[..., Tensor]


class LogitDistillationTask(TrainingTask):
    """A student against its labels and its teacher's logits.

    loss = task_loss_weight * task_loss + distill_loss_weight * kd_loss

    The teacher is frozen, stays in eval mode, outside DistributedDataParallel and out of every state dict. A cached
    output reaches `forward` as a TeacherOutput; the task cannot tell it from a live one.

    Args:
        student_model: the model to train.
        teacher: a timm name, an nn.Module, a Teacher, or None when every output comes from a cache. What is not a
            Teacher yet is made one that takes its input in the student's normalisation.
        criterion: task loss of (logits [B, C], target); cross-entropy by default. With task_loss_weight 0 no label is
            looked at, and `target` may be None.
        distill_loss: name of a loss in kdkit.losses, or a function of (student_logits, teacher_logits), with a
            third argument `target` if it needs the labels.
        temperature: bound into a loss given by name; that loss's own default when None.
        task_loss_weight, distill_loss_weight: weights of the sum above.
        device, dtype, verbose: as for TrainingTask.

    Raises:
        ClassMismatchError: teacher and student count classes differently.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher: str | nn.Module | Teacher | None = None,
        criterion: Criterion | None = None,
        *,
        distill_loss: str | DistillLoss = "kl",
        temperature: float | None = None,
        task_loss_weight: float = 1.0,
        distill_loss_weight: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.trainable_module = student_model
        self.criterion = criterion if criterion is not None else nn.CrossEntropyLoss()
        self.distill_loss, self._needs_target = _resolve_loss(distill_loss, temperature)
        self.task_loss_weight = task_loss_weight
        self.distill_loss_weight = distill_loss_weight
        self.teacher = _resolve_teacher(teacher, student_model, device, dtype)

    def forward(
        self, input: Tensor, target: Tensor | None, teacher_output: TeacherOutput | None = None
    ) -> dict[str, Tensor]:
        """One step's forward pass and losses.

        Args:
            input: images [B, 3, H, W] in the student's normalisation.
            target: class indices [B] or soft labels [B, C]; may be None when task_loss_weight is 0.
            teacher_output: what a teacher said about this very input; the task's own teacher is asked when None.

        Returns:
            'loss' [], 'output' [B, C], and unweighted 'task_loss' [] (0 when trained without labels), 'kd_loss' [].

        Raises:
            MissingTeacherError: neither a teacher nor a teacher output.
        """
        teacher_logits = self._teacher_logits(input, teacher_output)
        output = self.trainable_module(input)
        logits = to_compute_dtype(output)
        task_loss = self._task_loss(logits, target)
        with torch.autocast(logits.device.type, enabled=False):
            labels = (target,) if self._needs_target else ()
            kd_loss = self.distill_loss(logits, teacher_logits, *labels)
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": output, "task_loss": task_loss, "kd_loss": kd_loss}

    def _task_loss(self, logits: Tensor, target: Tensor | None) -> Tensor:
        if self.task_loss_weight == 0:
            return logits.new_zeros(())
        if target is None:
            raise ConfigError("target is None but task_loss_weight is not 0: pass labels, or task_loss_weight=0")
        return self.criterion(logits, target)

    def _teacher_logits(self, input: Tensor, teacher_output: TeacherOutput | None) -> Tensor | losses.SparseLogProbs:
        if teacher_output is None:
            if self.teacher is None:
                raise MissingTeacherError(
                    f"{type(self).__name__} was made without a teacher and got no teacher_output: "
                    "pass teacher=... to the task, or teacher_output=cache(batch) to the call"
                )
            teacher_output = self.teacher(Batch(input, input.new_zeros(0)))
        if teacher_output.sparse is not None:
            said = teacher_output.sparse
            return losses.SparseLogProbs(said.ids, said.log_probs, said.num_classes, said.log_rest)
        if teacher_output.logits is None:
            raise MissingTeacherError(
                f"teacher_output holds no logits, only features {sorted(teacher_output.features)}: "
                "build the cache with its 'logits' stream"
            )
        return teacher_output.logits


def _resolve_loss(loss: str | DistillLoss, temperature: float | None) -> tuple[DistillLoss, bool]:
    """The loss as a function, and whether it takes the target as its third argument."""
    if isinstance(loss, str):
        if losses.is_feature_loss(loss):
            raise ConfigError(f"{loss!r} compares features, not logits: it is no loss for LogitDistillationTask")
        options = {} if temperature is None else {"temperature": temperature}
        loss = losses.create(loss, **options)
    elif temperature is not None:
        raise ConfigError("temperature is for a loss given by name; bind it into your own function instead")
    return loss, losses.needs_target(loss)


def _resolve_teacher(
    teacher: str | nn.Module | Teacher | None,
    student_model: nn.Module,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Teacher | None:
    """A frozen Teacher for this student's input and classes, or None."""
    if teacher is None:
        return None
    student: Any = unwrap_model(student_model)
    num_classes = getattr(student, "num_classes", None)
    if not isinstance(teacher, Teacher):
        teacher = create_teacher(teacher, dtype=dtype, device=device)
    if num_classes is not None and teacher.num_classes is not None and num_classes != teacher.num_classes:
        raise ClassMismatchError(
            f"the teacher {teacher.name!r} has {teacher.num_classes} classes, the student {num_classes}: "
            "give the teacher a class_map, or the student num_classes="
            f"{teacher.num_classes}"
        )
    return teacher.for_input(Normalization.of(student))
