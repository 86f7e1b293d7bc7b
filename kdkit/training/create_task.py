"""Create the task that trains a student from its configuration."""

from __future__ import annotations

from torch import Tensor, nn

from kdkit.cache import CacheReader
from kdkit.errors import ConfigError
from kdkit.tasks import (
    ClassificationTask,
    FeatureDistillationTask,
    LabelledCrossEntropy,
    LogitDistillationTask,
    MultiLabelClassificationTask,
    MultiLabelCrossEntropy,
    MultiLabelDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)
from kdkit.tasks.distillation import TaskOptions
from kdkit.tasks.term import as_terms
from kdkit.teachers import Teacher
from kdkit.teachers.head import weight_of_head
from kdkit.training.config import DistillConfig
from kdkit.training.live import live_part_of


def _check_streams(config: DistillConfig, cache: CacheReader) -> None:
    """Raises CacheStreamError unless the cache holds the features that the losses compare; names the build command."""
    own = config.teacher_taps or config.student_taps
    for term in as_terms(config.distill_loss):
        for tap in (term.teacher_taps or term.student_taps or own) if term.is_feature and not term.has_exits else ():
            cache.check_exists(tap)


def create_task(
    config: DistillConfig,
    student: nn.Module,
    teacher: Teacher | str | None,
    cache: CacheReader | None,
    *,
    is_multi_label: bool = False,
    num_rows: int | None = None,
) -> TrainingTask:
    """The task that the configuration needs: with a live teacher ("ema" is one), for a cache's outputs, or for labels.

    Args:
        config: the run.
        student: the model to train.
        teacher: the live teacher, or None.
        cache: the cache whose features the task is for, or None.
        is_multi_label: whether the data's targets are vectors of 0 and 1.
        num_rows: samples of the data, for losses that remember each of them.
    """
    if is_multi_label:
        return _create_multi_label(config, student, teacher)
    criterion = LabelledCrossEntropy(label_smoothing=config.label_smoothing)
    if config.task_kind == "labels":
        return ClassificationTask(student, criterion)
    options = _options(config)
    if config.task_kind == "feature":
        if cache is not None:
            _check_streams(config, cache)
        return FeatureDistillationTask(
            student,
            teacher,
            criterion,
            distill_loss=config.distill_loss,
            student_taps=config.student_taps,
            teacher_taps=config.teacher_taps,
            teacher_widths=None if cache is None else cache.feature_widths,
            head_weight=_head_beside(config, cache),
            num_rows=num_rows,
            **options,
        )
    kind = TokenDistillationTask if config.task_kind == "token" else LogitDistillationTask
    return kind(student, teacher, criterion, distill_loss=config.distill_loss, **options)


def _create_multi_label(config: DistillConfig, student: nn.Module, teacher: Teacher | str | None) -> TrainingTask:
    """The task for targets that are vectors of 0 and 1."""
    criterion = MultiLabelCrossEntropy(label_smoothing=config.label_smoothing)
    if config.task_kind == "labels":
        return MultiLabelClassificationTask(student, criterion)
    if config.task_kind != "logit":
        raise ConfigError(
            f"the data has several labels per image, which the task {config.task_kind} does not take: use the task "
            "logit with --loss sigmoid_kl"
        )
    return MultiLabelDistillationTask(student, teacher, criterion, distill_loss=config.distill_loss, **_options(config))


def _head_beside(config: DistillConfig, cache: CacheReader | None) -> Tensor | None:
    """The classifier's weight [C, D] of the live teacher beside a cache, if a loss needs it; None without one."""
    live = live_part_of(cache)
    needy = [term.name for term in as_terms(config.distill_loss) if term.needs_head]
    return weight_of_head(live, f"the loss {needy[0]!r}") if needy and isinstance(live, Teacher) else None


def _options(config: DistillConfig) -> TaskOptions:
    return {
        "temperature": config.temperature,
        "standardize": config.standardize,
        "task_loss_weight": config.task_loss_weight,
        "distill_loss_weight": config.distill_loss_weight,
        "combine": config.cache_combine,
    }
