"""Configuration of `kdkit distill` and of `kdkit export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kdkit.bounds import shown
from kdkit.config import (
    EMA,
    ColumnsConfig,
    Data,
    DeviceConfig,
    MismatchConfig,
    OverwriteConfig,
    StudentConfig,
    TeacherConfig,
)
from kdkit.config.choices import check_choices
from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe
from kdkit.training.trackers import check_tracker
from kdkit.training.train_config import TrainConfig

__all__ = ["DistillConfig", "ExportConfig", "TrainConfig"]

_NEEDS_TEACHER = ("task", "distill_loss", "temperature", "standardize", "student_taps", "teacher_taps")
"""Fields that concern a teacher's output."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(StudentConfig, OverwriteConfig):
    """Student to export, and where it is written."""

    output: str
    """Folder for model.safetensors and config.json, in the layout of timm's hub."""

    onnx: bool = False
    """Write model.onnx as well; needs the package onnx."""


@dataclass(frozen=True)
class DistillConfig(ColumnsConfig, DeviceConfig, MismatchConfig, OverwriteConfig):
    """A training run of `kdkit distill`: from a cache, from a live teacher, or from labels alone."""

    data: Data
    """Training images: a folder of class folders or of images only, a .tar or .zip, a folder of WebDataset shards,
    hfds/NAME:SPLIT, or a .csv or .parquet of paths and labels; or several, of which some may have no labels."""

    output: str
    """Folder for checkpoints, config.yaml, metrics.jsonl and summary.csv."""

    student: str
    """Student: a name of timm (resnet18, vit_tiny_patch16_224) or torchvision:NAME, or a function of your own,
    package.module:function; it gets as many classes as the data has."""

    pretrained: bool = False
    """Start from the student's published weights, with a new head where the classes differ."""

    student_checkpoint: str | None = None
    """Start from the weights in this file (safetensors or torch), with a new head where the classes differ."""

    student_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model for the student, e.g. {drop_path_rate: 0.1}."""

    cache: tuple[str, ...] | str | None = None
    """Cache of the teacher's outputs, or several, whose probabilities are averaged; its recipe is the default."""

    cache_weights: tuple[float, ...] | None = None
    """Weights of several caches in the average, one each, and at last that of a live teacher; equal by default."""

    cache_temperatures: tuple[float, ...] | None = None
    """Temperatures that the outputs of several caches, and at last of a live teacher, are softened by before they are
    averaged; 1 by default."""

    cache_combine: Literal["probabilities", "losses"] = "probabilities"
    """How several teachers teach: by the loss against their average (probabilities), or by the sum of the losses
    against each (losses)."""

    class_names: tuple[str, ...] | None = None
    """Classes to train on, of those of the data and the cache, in the student's order: their names, or one file with a
    name per line or a JSON list; images of other classes are left out. All by default."""

    class_map: str | None = None
    """JSON file with the cache's class, by index or name, for each class of class_names or of the data; by default the
    one of the same name."""

    teacher: TeacherConfig | None = None
    """Live teacher; with a cache, the average of both teaches."""

    validation: str | None = None
    """Validation images; none by default."""

    recipe: ViewRecipe | None = None
    """What the views look like; the cache's own by default, and compared with it otherwise. Without a cache,
    crops and flips with a new view in each epoch; on the command line also where the number of views is not given."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimiser and schedule."""

    task: Literal["logit", "feature", "token"] | None = None
    """What the student learns from: logit (the teacher's logits), feature (its features, and its logits where a loss
    compares them) or token (its logits, through the student's second head); by default as the loss needs."""

    distill_loss: str | dict[str, float | dict[str, Any]] = "kl"
    """Distillation loss, by its name in kdkit.losses; or several with weights, e.g. {hint_mse: 100, kl: 1}, or with
    options, e.g. {dkd: {weight: 1, beta: 0.5}, second: {loss: hint_mse, teacher_taps: "1:pooled"}}."""

    temperature: float | None = None
    """Temperature of losses on logits that take one; each loss has its own default."""

    standardize: bool = False
    """Standardise logits before losses on them."""

    student_taps: tuple[str, ...] = ("pooled",)
    """Task feature: taps of the student, e.g. pooled, stages.3 or a module's path; several for vitkd and review."""

    teacher_taps: tuple[str, ...] | None = None
    """Task feature: taps of the teacher, which are streams of a cache; the student's by default."""

    task_loss_weight: float = 1.0
    """Weight of the loss on labels; 0 trains without labels."""

    label_smoothing: float = 0.0
    """Share of each label that the loss on labels spreads evenly over all classes."""

    distill_loss_weight: float = 1.0
    """Weight of the distillation loss."""

    unreadable: Literal["stop", "skip"] = "stop"
    """What to do about an image that cannot be read: stop, or skip it and name it in skipped.jsonl."""

    resume: bool = False
    """Resume a stopped run from its last checkpoint; a run without a checkpoint starts from the beginning."""

    preflight: bool = True
    """Check the teacher, its classes and the memory before the first step; otherwise leave these checks out."""

    tracker: tuple[str, ...] | str | None = None
    """Tracker, or several, of the metrics: tensorboard, trackio, wandb, or module:NAME of your own; none by default."""

    project: str = "kdkit"
    """Name of the project in the tracker."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in self.trackers:
            check_tracker(name)
        self._check_teacher()
        self._check_caches()
        kind = self.task_kind
        if kind == "feature" and not any(self._by_loss("is_feature_loss")):
            raise ConfigError(
                f"the task feature needs a loss on features, got {shown(self.distill_loss)}: give one, such as --loss "
                "hint_mse, or leave out task"
            )
        if kind != "feature" and (self.teacher_taps or self.student_taps != DistillConfig.student_taps):
            raise ConfigError(f"taps are of the task feature, this is the task {kind}: leave them out")
        if self.task_loss_weight < 0 or self.distill_loss_weight < 0:
            raise ConfigError("task_loss_weight and distill_loss_weight must be 0 or more")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        if self.is_ema_teacher and self.train.ema_decay is None:
            raise ConfigError("the teacher 'ema' is the student's moving average: give it a decay, --train.ema_decay")
        if self.pretrained and self.student_checkpoint is not None:
            raise ConfigError("a student starts from one set of weights, got pretrained and student_checkpoint")
        if self.resume and self.overwrite:
            raise ConfigError("a run is either resumed (--resume) or replaced (--overwrite), got both")

    def _check_teacher(self) -> None:
        if self.caches and self.is_ema_teacher:
            raise ConfigError("the student's moving average and a cache cannot both be the teacher: leave one out")
        if self.has_teacher:
            return
        for name in _NEEDS_TEACHER:
            if getattr(self, name) != getattr(DistillConfig, name):
                raise ConfigError(f"{name} needs a teacher, and there is none: give --cache FILE or --teacher NAME")
        if self.task_loss_weight == 0:
            raise ConfigError("task_loss_weight is 0 and there is no teacher: give --cache FILE or --teacher NAME")
        for name in ("distill_warmup_epochs", "log_gradients"):
            if getattr(self.train, name):
                raise ConfigError(f"{name} needs a teacher: give --cache FILE or --teacher NAME")

    def _check_caches(self) -> None:
        leaves_out = self.train.min_confidence is not None or self.train.label_agreement
        if leaves_out and (not self.caches or self.teacher is not None):
            wanted = "leave out --teacher" if self.caches else "give --cache FILE"
            raise ConfigError(f"min_confidence and label_agreement are of cached teachers alone: {wanted}")
        if self.class_map is not None and not self.caches:
            raise ConfigError("class_map is of a cache, and there is none: give --cache FILE, or --teacher.class_map")
        if self.class_names == ():
            raise ConfigError("class_names is empty: name at least 2 classes, or leave it out")
        if "" in self.caches:
            raise ConfigError("a cache's name is empty: give its path, or leave out cache")
        count = len(self.caches) + (self.teacher is not None) if self.caches else 0
        if self.cache_combine != "probabilities" and count < 2:
            raise ConfigError(f"cache_combine is of several teachers, got {count} with a cache: leave it out")
        for name in ("cache_weights", "cache_temperatures"):
            numbers = getattr(self, name)
            if numbers is not None and (count < 2 or len(numbers) != count):
                expected = f"{name} is one number for each of several caches, and for a live teacher beside them"
                raise ConfigError(f"{expected}, got {len(numbers)} for {count}")

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers by name: none, one or several, each once."""
        given = () if self.tracker is None else (self.tracker,) if isinstance(self.tracker, str) else self.tracker
        return tuple(dict.fromkeys(given))

    @property
    def caches(self) -> tuple[str, ...]:
        """The caches by name: none, one or several."""
        return () if self.cache is None else (self.cache,) if isinstance(self.cache, str) else tuple(self.cache)

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher: a cache or a live one; otherwise the student learns from labels alone."""
        return bool(self.caches) or self.teacher is not None

    @property
    def is_ema_teacher(self) -> bool:
        """Whether the student's moving average is the teacher."""
        return self.teacher is not None and self.teacher.model == EMA

    @property
    def task_kind(self) -> Literal["logit", "feature", "token", "labels"]:
        """The task that is given, or that the losses need: feature if one of them compares features."""
        if not self.has_teacher:
            return "labels"
        return self.task or ("feature" if any(self._by_loss("is_feature_loss")) else "logit")

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The distillation losses by name; in a mapping a name may be a term's key, with the loss under "loss"."""
        given = self.distill_loss
        terms: Any = given.items() if isinstance(given, Mapping) else [(given, {})]
        return tuple(str(term.get("loss", name)) if isinstance(term, Mapping) else name for name, term in terms)

    @property
    def compares_logits(self) -> bool:
        """Whether a loss compares logits with the teacher's, so that both have the same classes."""
        return self.has_teacher and any(self._by_loss("compares_logits"))

    def _by_loss(self, question: str) -> list[bool]:
        """For each distillation loss the answer of kdkit.losses' function of this name."""
        from kdkit import losses  # loads torch, which a configuration does without until here

        return [getattr(losses, question)(name) for name in self.loss_names]
