"""Distillation from a teacher's features, live or cached; from its logits too, if a term compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from timm.utils import unwrap_model
from torch import Tensor, nn
from typing_extensions import Self, Unpack

from kdkit.errors import CheckpointError, ConfigError, MissingTeacherError
from kdkit.tasks.comparison import Comparison, with_taps
from kdkit.tasks.distillation import DistillationTask, TaskOptions
from kdkit.tasks.exits import LOGITS, Exits
from kdkit.tasks.feature_student import FeatureStudent
from kdkit.tasks.student_task import Criterion
from kdkit.tasks.term import DistillLosses, Samples
from kdkit.teachers import Teacher
from kdkit.teachers.head import weight_of_head
from kdkit.teachers.tap import check_taps, tap_width
from kdkit.types import SparseLogits, TeacherOutput

_STATE = "comparisons"
_TIMM_STATE = "projection"


class FeatureDistillationTask(DistillationTask):
    """Trains a student from labels and its teacher's features, and from logits if a term compares them.

    Parameters of the losses, such as projections, train inside `trainable_module` together with the student, and are
    kept in checkpoints as task state: the student's own weights stay those of a plain timm model. A teacher without a
    head (num_classes=0) serves terms on features.

    Args:
        student_model: a timm model.
        teacher, criterion, options: as for DistillationTask. A teacher gets the taps that the terms need.
        distill_loss: as for DistillationTask, at least one term a feature loss.
        student_taps: taps of the student, for terms that name no taps; see kdkit.teachers.tap.
        teacher_taps: the same for the teacher; the student's taps when None.
        teacher_widths: tap of the teacher -> its width D, for losses that project features if there is no live
            teacher: the feature_widths of a cache.
        head_weight: weight [C, D] of the teacher's classifier, `Teacher.head_weight`, for losses that need it if there
            is no live teacher: a cache does not hold it.
        num_rows: samples of the dataset, len(dataset), for losses that remember each of them; `forward` then needs
            `row`.

    Raises:
        ConfigError: no term compares features, a width or a classifier is not known, or as for DistillationTask.
        ClassMismatchError: as for DistillationTask.
        UnknownNameError: student or teacher have no such tap.
    """

    takes_features: ClassVar[bool] = True

    def __init__(
        self,
        student_model: nn.Module,
        teacher: str | nn.Module | Teacher | None = None,
        criterion: Criterion | None = None,
        *,
        distill_loss: DistillLosses = "hint_mse",
        student_taps: str | Sequence[str] = "pooled",
        teacher_taps: str | Sequence[str] | None = None,
        teacher_widths: Mapping[str, int] | None = None,
        head_weight: Tensor | None = None,
        num_rows: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        super().__init__(
            student_model,
            teacher,
            criterion,
            distill_loss=distill_loss,
            **options,
        )
        self.terms = tuple(with_taps(term, student_taps, teacher_taps or student_taps) for term in self.terms)
        compared = [term for term in self.terms if term.is_feature]
        if not compared:
            raise ConfigError("no term compares features: use LogitDistillationTask")
        check_taps(student_model, _distinct(tap for term in compared for tap in term.student_taps), "the student")
        self.taps = _distinct(tap for term in compared for tap in term.teacher_taps)
        if self.teacher is not None:
            self.teacher = self.teacher.with_taps(self.taps)
        widths = self._teacher_width(student_model, teacher_widths or {})
        own, head = (lambda tap: tap_width(student_model, tap)), (lambda: self._head_of_teacher(head_weight))
        classes = getattr(unwrap_model(student_model), "num_classes", None)
        comparisons = {
            term.result_key: Exits(term, own, classes)
            if term.has_exits
            else Comparison(term, own, widths, head, num_rows)
            for term in compared
        }
        idle = self.task_loss_weight == 0 and len(compared) == len(self.terms)
        reference = next(student_model.parameters())
        self.trainable_module = FeatureStudent(student_model, comparisons, has_idle_head=idle)
        self.trainable_module.comparisons.to(device=reference.device, dtype=reference.dtype)
        self.needs_rows = "row" in self.trainable_module.needs

    def _teacher_width(self, student_model: nn.Module, given: Mapping[str, int]) -> Callable[[str], int]:
        def width(tap: str) -> int:
            if tap in given:
                return given[tap]
            if self.is_ema_teacher:
                return tap_width(student_model, tap)
            if self.teacher is None:
                raise ConfigError(
                    f"the width of the teacher's {tap!r} is not known without a live teacher: pass "
                    f"teacher_widths={{{tap!r}: D}}, or the feature_widths of a cache that holds it"
                )
            return self.teacher.tap_width(tap)

        return width

    def _head_of_teacher(self, given: Tensor | None) -> Tensor:
        """The weight [C, D] of the teacher's classifier."""
        if given is not None:
            return given
        if self.is_ema_teacher:
            raise ConfigError(
                "a loss needs the teacher's classifier, and that of the student's moving average changes in every "
                "step: take another teacher, or another loss"
            )
        if self.teacher is None:
            raise ConfigError(
                "a loss needs the teacher's classifier, which is not known without a live teacher: pass "
                "head_weight=teacher.head_weight, or give it beside the cache, --teacher NAME --cache-weights 1 0"
            )
        return weight_of_head(self.teacher, "a loss")

    def _forward_student(
        self, input: Tensor, teacher_output: TeacherOutput, samples: Samples
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        features = {tap: self._feature(teacher_output, tap) for tap in self.taps}
        if any(term.has_exits for term in self.terms):
            features[LOGITS] = _dense(teacher_output.any_logits)
        given = {name: _given(samples[name], name) for name in self._parts().needs}
        logits, terms = self.trainable_module(input, features, given)
        return logits, logits, terms

    def _feature(self, teacher_output: TeacherOutput, tap: str) -> Tensor:
        if tap not in teacher_output.features:
            streams = ["logits", *self.taps]
            held = ["logits"] * (teacher_output.any_logits is not None) + sorted(teacher_output.features)
            raise MissingTeacherError(
                f"teacher_output holds no {tap!r}, only {held}: build the cache with it, "
                f"kdkit cache build ... --streams {','.join(streams)}"
            )
        return teacher_output.features[tap]

    def _has_idle_head(self) -> bool:
        return self._parts().has_idle_head

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp_kwargs: Any) -> Self:
        """Wraps the task as DistillationTask does; memories of losses are made equal on all ranks first."""
        self._parts().join_ranks()
        return super().prepare_distributed(device_ids, **ddp_kwargs)

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """Returns only the student, or its EMA."""
        found = super().get_eval_model(module, ema)
        plain = None if found is None else unwrap_model(found)
        return plain.student if isinstance(plain, FeatureStudent) else found

    def get_clip_parameters(self, exclude_head: bool = False) -> Iterable[nn.Parameter]:
        """Returns the parameters to clip, as for TrainingTask; parameters of the losses are always clipped."""
        parts = self._parts()
        student = list(parts.student.parameters())
        return [*(student[:-2] if exclude_head else student), *parts.comparisons.parameters()]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Returns the parameters of the losses; empty if they have none."""
        found = module if module is not None else self.get_trainable_module(ema=ema)
        state = {} if found is None else self._parts(found).comparisons.state_dict()
        return {_STATE: state} if state else {}

    def load_task_state(
        self,
        state: Mapping[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Loads what `get_task_state` returned, or the projection of a checkpoint of timm's FeatureDistillationTask.

        Raises:
            CheckpointError: the state is that of other losses, or of none, and `strict` is True.
        """
        found = module if module is not None else self.get_trainable_module(ema=ema)
        if found is None:
            raise CheckpointError("the checkpoint's EMA weights need task.setup_ema() first")
        comparisons = self._parts(found).comparisons
        held, others = _comparisons_in(dict(state or {}), comparisons.state_dict())
        if strict and (others or set(held) != set(comparisons.state_dict())):
            raise CheckpointError(
                f"the checkpoint's task state holds {_shorten([*others, *held])}, this task's losses learn "
                f"{_shorten(comparisons.state_dict())}: resume with the task that wrote it, or pass strict=False"
            )
        try:
            comparisons.load_state_dict(held, strict=False)
        except RuntimeError as error:  # of another shape
            raise CheckpointError(
                f"the checkpoint's task state does not fit: {' '.join(str(error).split())}"
            ) from error

    def _parts(self, module: nn.Module | None = None) -> FeatureStudent:
        parts = unwrap_model(self.trainable_module if module is None else module)
        assert isinstance(parts, FeatureStudent)
        return parts


def _comparisons_in(state: dict[str, Any], learnt: Mapping[str, Tensor]) -> tuple[dict[str, Any], list[str]]:
    """The comparisons' state in a task state, and the names of its other entries.

    timm's task keeps one linear projection, {'projection': {'weight', 'bias'}}, which maps to the only projection here.
    """
    held = dict(state.pop(_STATE, {}))
    theirs = state.get(_TIMM_STATE)
    prefixes = {name.rpartition(".")[0] for name in learnt}
    if isinstance(theirs, Mapping) and not held and len(prefixes) == 1:
        state.pop(_TIMM_STATE)
        held = {f"{prefix}.{name}": value for prefix in prefixes for name, value in theirs.items()}
    return held, sorted(state)


def _dense(logits: Tensor | SparseLogits | None) -> Tensor:
    assert logits is not None  # `forward` has checked it
    return logits.to_dense() if isinstance(logits, SparseLogits) else logits


def _given(value: Tensor | None, name: str) -> Tensor:
    """What a loss needs of the samples."""
    if value is None:
        raise ConfigError(f"a loss needs the {name} of each sample: task(input, target, teacher_output, batch.row)")
    return value


def _distinct(taps: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(taps))


def _shorten(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:4]) or "nothing"
