"""The base of all distillation tasks: the teacher, its outputs, and the sum of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypedDict, get_args

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from typing_extensions import Self

from kdkit import losses
from kdkit.config import EMA
from kdkit.errors import ConfigError, MissingTeacherError
from kdkit.losses.multi_teacher import Combine
from kdkit.tasks.observation import TeacherLogits, num_classes_of, observe, observe_members
from kdkit.tasks.student_task import Criterion, StudentTask
from kdkit.tasks.teacher import check_same_classes, resolve_teacher
from kdkit.tasks.term import DistillLosses, Samples, as_terms, bound_loss, check_output, check_weight
from kdkit.teachers import Teacher
from kdkit.types import Batch, TeacherMember, TeacherOutput, TeacherSource, to_compute_dtype


class TaskOptions(TypedDict, total=False):
    """Keyword arguments that subclasses forward to DistillationTask, which defines their defaults."""

    temperature: float | None
    standardize: bool
    task_loss_weight: float
    distill_loss_weight: float
    combine: Combine
    device: torch.device | str | int | None
    dtype: torch.dtype | None
    verbose: bool


class DistillationTask(StudentTask):
    """Base of the tasks with a teacher: subclasses define `_forward_student`, and may wrap `trainable_module`.

    loss = task_loss_weight * task_loss + distill_loss_weight * kd_loss

    kd_loss is the weighted sum of the terms. The teacher is frozen, in eval mode, outside DistributedDataParallel and
    every state dict. A cached output reaches `forward` as a TeacherOutput, and is treated exactly like a live one.

    Args:
        student_model: the model to train.
        teacher: a timm name, an nn.Module, a timm.task.DistillationTeacher, a Teacher or TeacherEnsemble; None if
            every output comes from a cache; or "ema" for the moving average of the student itself, which `setup_ema`
            makes. A teacher takes its input in the student's normalisation and converts it to its own
            normalisation.
        criterion: task loss of (logits [B, C], target), over the samples that have a label; cross-entropy by default.
            With task_loss_weight 0 it is not called, and `target` may be None.
        distill_loss: name of a loss in kdkit.losses; a function of (student_logits, teacher_logits), with a third
            argument `target` if it needs the labels; several as {name: weight}; or names and LossTerms in a list.
        temperature: temperature of every named logit loss; None: each loss's default.
        standardize: whether the logits of every named logit loss are standardised first.
        task_loss_weight, distill_loss_weight: finite weights of the sum above.
        combine: of several caches: "probabilities" compares the student with their mix, "losses" sums the losses on
            logits against each, by the weights of the mix.
        device, dtype, verbose: as for TrainingTask.

    Raises:
        ConfigError: a weight, a temperature or another option is invalid, or given twice.
        ClassMismatchError: teacher and student differ in their number of classes, and a term compares logits.
    """

    takes_features: ClassVar[bool] = False
    """Whether losses on features can be terms of this task."""

    distill_loss_weight: float

    def __init__(
        self,
        student_model: nn.Module,
        teacher: str | nn.Module | Teacher | None = None,
        criterion: Criterion | None = None,
        *,
        distill_loss: DistillLosses = "kl",
        temperature: float | None = None,
        standardize: bool = False,
        task_loss_weight: float = 1.0,
        distill_loss_weight: float = 1.0,
        combine: Combine = "probabilities",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(student_model, criterion, device=device, dtype=dtype, verbose=verbose)
        self.task_loss_weight = check_weight("task_loss_weight", task_loss_weight)
        self.distill_loss_weight = check_weight("distill_loss_weight", distill_loss_weight)
        if combine not in get_args(Combine):
            raise ConfigError(f"combine must be one of {', '.join(get_args(Combine))}, got {combine!r}")
        self.combine: Combine = combine
        self.terms = as_terms(distill_loss, temperature=temperature, standardize=standardize)
        if not self.takes_features and (wrong := [term.name for term in self.terms if term.is_feature]):
            raise ConfigError(
                f"{wrong[0]!r} compares features, not logits: use it with FeatureDistillationTask, not "
                f"{type(self).__name__}"
            )
        self._logit_losses = tuple(
            (term, loss, losses.needs_target(loss))
            for term, loss in ((term, bound_loss(term)) for term in self.terms if not term.is_feature)
        )
        self._names_terms = not (isinstance(distill_loss, str) or callable(distill_loss))
        self.taps: tuple[str, ...] = ()
        self.is_ema_teacher = isinstance(teacher, str) and teacher == EMA
        self.teacher = None if self.is_ema_teacher else resolve_teacher(teacher, student_model, device, dtype)
        if self.teacher is not None and any(term.compares_logits for term in self.terms):
            check_same_classes(self.teacher, student_model)

    @property
    def live_teacher(self) -> TeacherSource | None:
        """The task's own teacher, unless that is the student's moving average, which `forward` runs itself."""
        return None if self.is_ema_teacher else self.teacher

    def forward(
        self,
        input: Tensor,
        target: Tensor | None,
        teacher_output: TeacherOutput | None = None,
        row: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Computes one step's forward pass and losses.

        Args:
            input: images [B, 3, H, W] in the student's normalisation.
            target: class indices [B], -1 for a sample without a label, or soft labels [B, C]; may be None when
                task_loss_weight is 0.
            teacher_output: a teacher's outputs for this very input; when None, the task's own teacher runs.
            row: number of each sample in the dataset [B], for losses that remember samples: Batch.row.

        Returns:
            'loss' [], 'output' [B, C], and unweighted 'task_loss' [] (0 when trained without labels), 'kd_loss' [].
            If several losses or LossTerms were given, each term [] under its key. For logging, each loss is also
            returned multiplied by its weight, e.g. ``weighted_kd_loss``; and of single labels the scalars of `observe`.

        Raises:
            MissingTeacherError: there is neither a teacher nor a teacher output, or the output lacks a stream that the
                task needs.
            ConfigError: `teacher_output` is not a TeacherOutput, or `target` is None with a task_loss_weight.
        """
        teacher_output = self._run_teacher(input) if teacher_output is None else teacher_output
        check_output(self.terms, teacher_output)
        teacher_logits = self._teacher_logits(teacher_output)
        output, distilled, terms = self._forward_student(input, teacher_output, {"target": target, "row": row})
        task_loss = self._task_loss(to_compute_dtype(output), target)
        members = teacher_output.members if self.combine == "losses" else ()
        terms |= self._logit_terms(to_compute_dtype(distilled), teacher_logits, members, target)
        result = self._sum(task_loss, terms) | {"output": output}
        if not self.is_multi_label and teacher_logits is not None and num_classes_of(teacher_logits) == output.shape[1]:
            result |= observe(output, teacher_logits, target) | observe_members(output, teacher_output.members, target)
        return result

    def _forward_student(
        self, input: Tensor, teacher_output: TeacherOutput, samples: Samples
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Logits for the labels [B, C], logits for the teacher [B, C], and the terms on features."""
        raise NotImplementedError

    def _task_loss(self, logits: Tensor, target: Tensor | None) -> Tensor:
        if self.task_loss_weight == 0:
            return logits.new_zeros(())
        if target is None:
            raise ConfigError("target is None but task_loss_weight is not 0: pass labels, or task_loss_weight=0")
        return self._label_loss(logits, target)

    def _logit_terms(
        self,
        logits: Tensor,
        teacher_logits: TeacherLogits | None,
        members: Sequence[TeacherMember],
        target: Tensor | None,
    ) -> dict[str, Tensor]:
        """Each loss on logits against the teacher, or summed over the members of a mix."""
        teachers: Any = [member.logits for member in members] or teacher_logits
        weights = [member.weight for member in members]
        with torch.autocast(logits.device.type, enabled=False):
            return {
                term.result_key: (losses.multi_teacher(loss, combine="losses", weights=weights) if members else loss)(
                    logits, teachers, *((target,) if needs_target else ())
                )
                for term, loss, needs_target in self._logit_losses
            }

    def _sum(self, task_loss: Tensor, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss, its parts, and the parts multiplied by their weights."""
        weights = {term.result_key: term.weight for term in self.terms}
        kd_loss = sum((weights[key] * value for key, value in terms.items()), start=task_loss.new_zeros(()))
        result = {"task_loss": task_loss, "kd_loss": kd_loss}
        weighted = {"task_loss": self.task_loss_weight * task_loss, "kd_loss": self.distill_loss_weight * kd_loss}
        total = {"loss": weighted["task_loss"] + weighted["kd_loss"]}
        if self._names_terms:
            result |= terms
            weighted |= {key: self.distill_loss_weight * weights[key] * value for key, value in terms.items()}
        return total | result | {f"weighted_{key}": value for key, value in weighted.items()}

    def _run_teacher(self, input: Tensor) -> TeacherOutput:
        """The outputs of the task's own teacher for images [B, 3, H, W]."""
        if self.teacher is None and self.is_ema_teacher:
            raise MissingTeacherError("the teacher is the student's moving average: call task.setup_ema() first")
        if self.teacher is None:
            raise MissingTeacherError(
                f"{type(self).__name__} was made without a teacher and got no teacher_output: "
                "pass teacher=... to the task, or teacher_output=cache(batch) to the call"
            )
        outputs: TeacherOutput = self.teacher(Batch(input, input.new_zeros(0)))  # a live teacher needs no label
        return outputs

    def _teacher_logits(self, teacher_output: TeacherOutput) -> TeacherLogits | None:
        """The teacher's logits, dense or sparse; None if there are none."""
        logits = teacher_output.any_logits
        if logits is None and any(term.compares_logits for term in self.terms):
            raise MissingTeacherError(
                f"teacher_output holds no logits, only features {sorted(teacher_output.features)}: "
                "build the cache with its 'logits' stream"
            )
        return logits

    def _has_idle_head(self) -> bool:
        """Whether a head of the student gets no gradient, because no loss depends on it."""
        return False

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp_kwargs: Any) -> Self:
        """Wraps the task as StudentTask does; sets find_unused_parameters if a head receives no gradient."""
        if self._has_idle_head():
            ddp_kwargs.setdefault("find_unused_parameters", True)
        return super().prepare_distributed(device_ids, **ddp_kwargs)

    def compile(  # type: ignore[override]  # timm's protocol: returns the module to evaluate with
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module | None:
        """Compiles the task as TrainingTask does, and the live teacher's forward pass."""
        if self.teacher is not None:
            self.teacher.compile(backend=backend, mode=mode, **compile_kwargs)
        return super().compile(backend=backend, mode=mode, **compile_kwargs)

    def _describe(self) -> list[str]:
        teacher = "ema" if self.is_ema_teacher else None if self.teacher is None else self.teacher.name
        terms = " + ".join(f"{term.weight:g} * {term.result_key}" for term in self.terms)
        total = f"{self.task_loss_weight:g} * task_loss + {self.distill_loss_weight:g} * ({terms})"
        return [f"teacher={teacher!r}", f"loss={total}"]

    def setup_ema(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Makes the EMA as TrainingTask does; if the teacher is "ema", this creates it."""
        ema = super().setup_ema(*args, **kwargs)
        if self.is_ema_teacher:
            student = unwrap_model(self.get_eval_model(ema=True))
            self.teacher = Teacher(student, name="the student's moving average", taps=self.taps)
        return ema
