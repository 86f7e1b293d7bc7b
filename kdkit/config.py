"""The configuration of a run: frozen dataclasses, serialisable as they stand.

What a cache file's metadata holds is the dict form of these same objects. Each field says what it means and in what
unit; each default is stated here and nowhere else. Needs nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe as ViewRecipe  # a part of the configuration, in a file of its own


@dataclass(frozen=True)
class BuildConfig:
    """How a cache is built; none of it but streams and codecs changes what the cache holds."""

    streams: tuple[str, ...] = ("logits",)
    """What is kept of each answer: logits, and the teacher's taps, such as pooled, tokens or stages.3; logits may be
    left out."""

    codec: str | None = None
    """How a row of logits is stored: float32 (exact), float16, int8, topk or lowrank; by default lowrank where that is
    smaller than float16, else float16."""

    codec_options: dict[str, Any] = field(default_factory=dict)
    """Options of the codec, e.g. {row_bytes: 96} for lowrank or {k: 10} for topk."""

    feature_codec: str = "float16"
    """How a row of any other stream is stored: float16, or int8 with a least value and a step for each row, token or
    channel."""

    batch_size: int = 256
    """Images that the teacher is given at once."""

    num_workers: int = 2
    """Processes that load and augment images; 0 loads in the main process."""

    shard_rows: int = 10_000
    """Rows of a shard: what a killed build loses at most; rounded up to whole thousands, and fewer where a shard would
    be larger than 256 MiB."""

    pack: bool = True
    """Whether the finished shards become one file; if not, the folder of shards is the cache."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1 image, got {self.batch_size}")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers must be 0 or more, got {self.num_workers}")
        if not self.streams or len(set(self.streams)) != len(self.streams):
            raise ConfigError(f"streams must name at least one stream, and none twice, got {list(self.streams)}")
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows must be at least 1 row, got {self.shard_rows}")


AMP_DTYPES = ("bfloat16", "float16")
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


@dataclass(frozen=True)
class DemoConfig:
    """The demonstration on scikit-learn's digits."""

    output: str = "kdkit-demo"
    """Folder for the cache, metrics.jsonl, summary.csv and the learning curves."""

    seeds: int = 3
    """Students trained each way."""

    epochs: int = 8
    """Passes over the 1,347 training images, for each student."""

    teacher_epochs: int = 6
    """Passes over the 1,347 training images, for the teacher."""

    num_views: int = 8
    """Replayed views of each image that the teacher is asked about."""

    num_workers: int = 1
    """Processes that augment images; 0 augments in the main process."""

    overwrite: bool = False
    """Whether what an earlier run left in the output folder is replaced; a folder with anything else is refused."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.seeds}")
        for name in ("epochs", "teacher_epochs"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} must be at least 2, got {getattr(self, name)}")


EMA = "ema"
"""As a teacher: the moving average of the student that is trained."""


@dataclass(frozen=True)
class SingleTeacherConfig:
    """One teacher, alone or of an ensemble."""

    model: str
    """timm name, with or without tag, e.g. resnet50.a1_in1k; or the path of a teacher card; or, of a training alone,
    ema for the moving average of the student itself."""

    checkpoint: str | None = None
    """Weights file (safetensors or torch) to load in place of timm's pretrained weights."""

    input_size: int | None = None
    """Side in pixels that the teacher is given; by default what arrives, or the only size it accepts."""

    dtype: str | None = None
    """Precision of the weights: float32, bfloat16 or float16; float32 by default."""

    autocast: str | None = None
    """Autocast dtype, bfloat16 or float16, over the weights as they are; none by default."""

    class_map: str | None = None
    """For each class asked for the teacher's class: a JSON file with a list of indices or of synsets, or the name of an
    ImageNet family, e.g. imagenet-1k; all of the teacher's classes by default."""

    missing: str = "error"
    """About a class of the map that the teacher does not have: error, or least for the least logit."""

    weight: float = 1.0
    """How much its probabilities count in an ensemble, in proportion to the others' weights."""

    def __post_init__(self) -> None:
        known = (
            ("dtype", (None, "float32", *AMP_DTYPES)),
            ("autocast", (None, *AMP_DTYPES)),
            ("missing", ("error", "least")),
        )
        for name, values in known:
            if getattr(self, name) not in values:
                raise ConfigError(f"{name} must be one of {', '.join(map(str, values))}, got {getattr(self, name)!r}")
        if self.input_size is not None and self.input_size < 1:
            raise ConfigError(f"input_size must be at least 1 pixel, got {self.input_size}")
        if self.missing != "error" and self.class_map is None:
            raise ConfigError(f"missing {self.missing!r} is about classes of a class_map, and there is none")
        if not 0 <= self.weight < float("inf"):
            raise ConfigError(f"weight must be a number of 0 or more, got {self.weight}")


@dataclass(frozen=True)
class TeacherConfig(SingleTeacherConfig):
    """Which teacher is asked."""

    ensemble: tuple[SingleTeacherConfig, ...] = ()
    """Further teachers, of an ensemble whose probabilities are averaged, each with the options of this one, e.g.
    [{model: resnet50, input_size: 288, weight: 2}]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ensemble and self.weight != 1:
            raise ConfigError(f"weight is that of a teacher in an ensemble, got {self.weight} for one without others")
        given = [f.name for f in fields(self) if f.name != "model" and getattr(self, f.name) != f.default]
        if self.model == EMA and given:
            raise ConfigError(f"the teacher 'ema' is the student's moving average as it is: leave out {given[0]}")


@dataclass(frozen=True, kw_only=True)
class TeachersCheckConfig:
    """Which teacher is checked, and on which images."""

    card: str | None = None
    """A teacher card: its name, looked for in ./teachers and among those that ship, or its path; by default that of the
    teacher, if there is one."""

    data: str
    """Folder of labelled images, one folder a class; of an ImageNet teacher, called by synset."""

    teacher: TeacherConfig | None = None
    """Who is asked, with all that a cache's teacher can be given; by default the card's."""

    checkpoint: str | None = None
    """Weights file (safetensors or torch) in place of the card's; where the teacher is the card's."""

    limit: int | None = None
    """Images that are drawn from the folder; all by default."""

    batch_size: int = 64
    """Images that the teacher is given at once."""

    num_workers: int = 2
    """Processes that load images; 0 loads in the main process."""

    device: str = "cpu"
    """Where the teacher runs: cpu, cuda, cuda:1."""

    def __post_init__(self) -> None:
        if self.card is None and self.teacher is None:
            raise ConfigError("a check needs --card NAME or --teacher.model NAME, got neither")
        if self.teacher is not None and self.checkpoint is not None:
            raise ConfigError("checkpoint is for the card's own teacher: give --teacher.checkpoint instead")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1 image, got {self.limit}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1 image, got {self.batch_size}")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers must be 0 or more, got {self.num_workers}")


@dataclass(frozen=True, kw_only=True)
class CacheEstimateConfig:
    """What a cache would be made from."""

    data: str
    """Training images: a folder of class folders, a .tar or .zip of them, a folder of tars, or hfds/NAME:SPLIT."""

    teacher: TeacherConfig
    """Who is asked."""

    recipe: ViewRecipe = field(default_factory=ViewRecipe)
    """What the views look like; on the command line also a preset: --recipe deit."""

    build: BuildConfig = field(default_factory=BuildConfig)
    """How the cache is built."""

    device: str = "cpu"
    """Where the teacher runs: cpu, cuda, cuda:1."""


@dataclass(frozen=True, kw_only=True)
class CacheBuildConfig(CacheEstimateConfig):
    """What a cache is made from, and where it goes."""

    output: str
    """The cache file to be, e.g. teacher.h5."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, as an error names them, in which a build that goes on may differ from what is there, e.g.
    teacher.weights_sha256: for one who knows why it does no harm."""


@dataclass(frozen=True, kw_only=True)
class CacheExtendConfig:
    """Which cache gets more views, and from what."""

    cache: str
    """The cache: its file or its folder of shards."""

    data: str
    """Folder of the images that it was made from."""

    teacher: TeacherConfig
    """Who made it."""

    num_views: int
    """Views that it shall have of each image, those that are there included."""

    batch_size: int = BuildConfig.batch_size
    """Images that the teacher is given at once."""

    num_workers: int = BuildConfig.num_workers
    """Processes that load and augment images; 0 loads in the main process."""

    device: str = "cpu"
    """Where the teacher runs: cpu, cuda, cuda:1."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, as an error names them, in which this run may differ from the cache, e.g. teacher.weights_sha256: for one
    who knows why it does no harm."""


@dataclass(frozen=True, kw_only=True)
class CacheInfoConfig:
    """Which cache is described."""

    cache: str
    """The cache: its file or its folder of shards."""

    plot: str | None = None
    """PNG to draw: the teacher's confidence and entropy, view by view; none by default."""


@dataclass(frozen=True, kw_only=True)
class CacheVerifyConfig:
    """Which cache is verified, and against whom."""

    cache: str
    """The cache: its file or its folder of shards."""

    data: str | None = None
    """Folder of the images that it was made from; with it and the teacher, rows are computed again."""

    teacher: TeacherConfig | None = None
    """Who made it."""

    rows: int = 64
    """How many random rows the teacher is asked about again."""

    device: str = "cpu"
    """Where the teacher runs: cpu, cuda, cuda:1."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, as an error names them, in which teacher or images may differ from the cache's, e.g. teacher.dtype; what
    the teacher says is compared all the same."""

    def __post_init__(self) -> None:
        if (self.data is None) != (self.teacher is None):
            raise ConfigError("computing rows again needs both --data and --teacher.model: give both or neither")
        if self.rows < 1:
            raise ConfigError(f"rows must be at least 1, got {self.rows}")


@dataclass(frozen=True, kw_only=True)
class CacheExportConfig:
    """Which rows of which cache are written for other tools."""

    cache: str
    """The cache: its file or its folder of shards."""

    output: str
    """A file that ends in .npz or .safetensors."""

    view: int = 0
    """Number of the view."""

    stream: str = "logits"
    """Which stream: logits, or the name of a feature that the cache holds."""

    overwrite: bool = False
    """Whether a file at the output is replaced."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Which student, with which weights."""

    student: str
    """Folder that `kdkit distill` or `kdkit export` left, or a timm name."""

    checkpoint: str | None = None
    """Weights file; by default the folder's best, else its last, or timm's pretrained weights."""

    ema: bool = False
    """Whether the checkpoint's EMA weights are taken; an error where it has none."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(StudentConfig):
    """A student, and the images that it is asked about."""

    data: str
    """Validation images, in any of the forms that training images have."""

    input_size: int | None = None
    """Side of the square image that the student sees, pixels; by default that of its training."""

    crop_pct: float | None = None
    """Share of the resized image's side that the centre crop keeps; by default that of its training."""

    batch_size: int = 256
    """Images that the student is given at once."""

    num_workers: int = 2
    """Processes that load images; 0 loads in the main process."""

    device: str = "cpu"
    """Where the student runs: cpu, cuda, cuda:1."""

    output: str | None = None
    """JSON file for the figures; none by default."""

    overwrite: bool = False
    """Whether a file at the output is replaced."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1 image, got {self.batch_size}")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers must be 0 or more, got {self.num_workers}")


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
