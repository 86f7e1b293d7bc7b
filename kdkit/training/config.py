"""Configuration of a training run, of `kdkit distill` and of `kdkit export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kdkit.config.student import StudentConfig
from kdkit.config.teacher import AMP_DTYPES, EMA, TeacherConfig
from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe

CLIP_MODES = ("norm", "value", "agc")
SCHEDULE_UNITS = ("update", "epoch")


UNREADABLE = ("stop", "skip")
TASKS = ("logit", "feature", "token")


@dataclass(frozen=True)
class TrainConfig:
    """Optimiser, schedule and loop of a training run."""

    epochs: int = 100
    """Passes over the training images; epoch e shows view e mod V."""

    batch_size: int = 256
    """Images a step and process."""

    accumulate: int = 1
    """Steps whose gradients are averaged for one update of the weights."""

    opt: str = "adamw"
    """Optimiser, as timm names it."""

    opt_options: dict[str, Any] = field(default_factory=dict)
    """Further options of the optimiser, as timm names them, e.g. {betas: [0.9, 0.98]} or {momentum: 0.95}."""

    lr: float = 1e-3
    """Learning rate at the end of warm-up."""

    weight_decay: float = 0.05
    """Weight decay; timm exempts biases and norms."""

    layer_decay: float | None = None
    """Factor of the learning rate from each layer to the one below it; all layers learn alike by default."""

    sched: str = "cosine"
    """Schedule of the learning rate, as timm names it."""

    sched_options: dict[str, Any] = field(default_factory=dict)
    """Further options of the schedule, as timm names them, e.g. {decay_milestones: [30, 60, 90]}; in epochs."""

    sched_unit: str = "update"
    """After what the learning rate changes: update or epoch."""

    min_lr: float = 0.0
    """Learning rate that the schedule ends at."""

    warmup_epochs: int = 0
    """Epochs in which the learning rate rises linearly."""

    warmup_lr: float | None = None
    """Learning rate that it rises from; a hundredth of `lr` by default."""

    distill_warmup_epochs: int = 0
    """Epochs in which the weight of the distillation loss rises linearly from 0."""

    clip_grad: float | None = None
    """Bound of the gradients, in the sense of `clip_mode`; none by default."""

    clip_mode: str = "norm"
    """How gradients are bounded: norm (of all together), value (of each), agc (adaptive, relative to the weights)."""

    amp: str | None = None
    """Autocast dtype of the student: bfloat16, or float16 with a loss scaler; none by default."""

    channels_last: bool = False
    """Whether images and the student's weights are laid out channels last."""

    compile: bool = False
    """Whether the student is compiled by torch.compile."""

    ema_decay: float | None = None
    """Decay of an exponential moving average of the student's weights, for each update; none by default."""

    ema_warmup: bool = False
    """Whether the decay of the moving average starts small."""

    num_workers: int = 2
    """Processes that load and augment images; 0 loads in the main process."""

    seed: int = 0
    """Seed of the student's weights, of the order of the images, and of dropout."""

    log_every: int = 50
    """Steps between two looks at the losses; each step is logged, but the device is waited for only then."""

    log_gradients: bool = False
    """Whether the step of each look also logs how strongly each term pulls at the student's head: the norm of its
    weighted gradient on rank 0, and the ratio of kd_loss's to task_loss's. Not with `compile`."""

    checkpoint_every: int = 1000
    """Updates between two checkpoints; there is one at the end of each epoch as well; 0 leaves it at that."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_workers", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("warmup_epochs", "distill_warmup_epochs"):
            if not 0 <= getattr(self, name) < self.epochs:
                raise ConfigError(f"{name} must be below epochs = {self.epochs}, got {getattr(self, name)}")
        for name, known in (("clip_mode", CLIP_MODES), ("sched_unit", SCHEDULE_UNITS), ("amp", (None, *AMP_DTYPES))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(map(str, known))}, got {getattr(self, name)!r}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.ema_warmup and self.ema_decay is None:
            raise ConfigError("ema_warmup is of a moving average, and there is none: give it a decay, ema_decay")
        if self.clip_mode != CLIP_MODES[0] and self.clip_grad is None:
            raise ConfigError(f"clip_mode {self.clip_mode!r} needs a bound, and there is none: give clip_grad")
        if self.log_gradients and self.compile:
            raise ConfigError("log_gradients asks a graph that compile gives away: leave one of them out")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ConfigError(f"clip_grad must be above 0, got {self.clip_grad}")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(StudentConfig):
    """A student, and where it goes."""

    output: str
    """Folder for model.safetensors and config.json, as timm's hub has them."""

    onnx: bool = False
    """Whether model.onnx is written too; needs the package onnx."""

    overwrite: bool = False
    """Whether what an earlier run left in the output folder is replaced; a folder with anything else is refused."""


@dataclass(frozen=True)
class DistillConfig:
    """Everything that `kdkit distill` needs."""

    data: str
    """Training images: a folder of class folders, a .tar or .zip of them, a folder of tars, or hfds/NAME:SPLIT."""

    output: str
    """Folder for checkpoints, config.yaml, metrics.jsonl and summary.csv."""

    student: str
    """timm name of the student, made anew with as many classes as the data has."""

    student_options: dict[str, Any] = field(default_factory=dict)
    """What timm.create_model is given besides, e.g. {drop_path_rate: 0.1}."""

    cache: str | None = None
    """Cache of the teacher's answers; gives the recipe as well."""

    teacher: TeacherConfig | None = None
    """Live teacher, where there is no cache: --teacher.model NAME and what else --teacher.help lists; model ema is the
    moving average of the student itself."""

    validation: str | None = None
    """Validation images; none by default."""

    recipe: ViewRecipe | None = None
    """What the views look like; the cache's own by default, and compared with it otherwise."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimiser and schedule."""

    task: str = "logit"
    """What the student learns from: logit, the teacher's logits; feature, its features, and its logits where a loss
    compares those; token, its logits, through a student's second head."""

    distill_loss: str | dict[str, float | dict[str, Any]] = "kl"
    """Distillation loss, as kdkit.losses names it; or several with their weights, e.g. {hint_mse: 100, kl: 1}, or with
    their options, e.g. {dkd: {weight: 1, beta: 0.5}}."""

    temperature: float | None = None
    """Temperature of losses on logits that take one; the loss's own by default."""

    standardize: bool = False
    """Whether logits are standardised before losses on them."""

    student_taps: tuple[str, ...] = ("pooled",)
    """Task feature: where the student is tapped, e.g. pooled, tokens or stages.3; several for vitkd and review."""

    teacher_taps: tuple[str, ...] | None = None
    """Task feature: where the teacher is tapped, streams of a cache; as the student by default."""

    task_loss_weight: float = 1.0
    """Weight of the loss on labels; 0 trains without them."""

    label_smoothing: float = 0.0
    """Share of each label that the loss on labels spreads evenly over all classes; the teacher's answers stay as they
    are."""

    distill_loss_weight: float = 1.0
    """Weight of the distillation loss."""

    device: str = "cpu"
    """Where the student trains: cpu, cuda, cuda:1."""

    unreadable: str = "stop"
    """What is done about an image that cannot be read: stop, or skip (each is named in skipped.jsonl)."""

    resume: bool = False
    """Whether a run that was stopped goes on from its last checkpoint; one that has none yet starts."""

    overwrite: bool = False
    """Whether what an earlier run left in the output folder is replaced; a folder with anything else is refused."""

    preflight: bool = True
    """Whether teacher, classes and memory are looked at before the first step."""

    tensorboard: bool = False
    """Whether metrics go to TensorBoard files in the output folder as well."""

    tracker: str | None = None
    """Module with wandb's init, log and finish that metrics go to as well, e.g. wandb or trackio; none by default."""

    project: str = "kdkit"
    """What the tracker calls the project."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, as an error names them, in which the run may differ from the cache, e.g. recipe.seed: for one who knows
    why it does no harm."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.task != "feature" and (self.teacher_taps or self.student_taps != DistillConfig.student_taps):
            raise ConfigError(f"taps are of the task feature, this is the task {self.task}: leave them out")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        if self.cache is not None and self.teacher is not None:
            raise ConfigError("a run has either a cache or a live teacher, got both: leave one out")
        if self.cache is None and self.teacher is None:
            raise ConfigError("a distillation needs --cache FILE or --teacher.model NAME, got neither")
        if self.is_own_teacher and self.train.ema_decay is None:
            raise ConfigError("the teacher 'ema' is the student's moving average: give it a decay, --train.ema_decay")
        if self.unreadable not in UNREADABLE:
            raise ConfigError(f"unreadable must be one of {', '.join(UNREADABLE)}, got {self.unreadable!r}")
        if self.resume and self.overwrite:
            raise ConfigError("a run is either gone on with (--resume) or replaced (--overwrite), got both")

    @property
    def is_own_teacher(self) -> bool:
        """Whether the student's moving average is the teacher."""
        return self.teacher is not None and self.teacher.model == EMA
