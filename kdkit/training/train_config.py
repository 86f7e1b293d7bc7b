"""Configuration of a training run: optimiser, schedule and loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from kdkit.bounds import shown
from kdkit.config import LoadingConfig
from kdkit.config.choices import check_choices
from kdkit.errors import ConfigError

_FINITE = ("lr", "weight_decay", "layer_decay", "min_lr", "warmup_lr")
_SEEDS = 2**31  # NumPy's seeds end at 2**32, and each rank adds its number


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoadingConfig):
    """Optimiser, schedule and loop of a training run."""

    epochs: int = 100
    """Passes over the training images; epoch e shows view e mod V."""

    fraction: float = 1.0
    """Share of the training images that the run sees, drawn evenly from each class; above 0, at most 1."""

    fraction_seed: int = 0
    """Seed of the draw of that share; it depends on the images' keys, not on their order."""
    views_per_decode: int | Literal["auto"] = 1
    """Views k drawn each time an image is decoded: each k epochs show the views of k epochs without it, with the
    k views of an image side by side in a batch. A number, or auto: up to 4 where loading takes longer than training,
    else 1. The default of the command line is auto."""

    min_confidence: float | None = None
    """Minimum probability of the cached teacher's likeliest class: a view below it is left out, and the image's next
    view shown in its place; none by default."""

    label_agreement: bool = False
    """Leave out views on which the cached teacher's likeliest class is not the label, in the same way."""

    accumulate: int = 1
    """Steps whose gradients are averaged for one update of the weights."""

    opt: str = "adamw"
    """Optimiser, by its timm name."""

    opt_options: dict[str, Any] = field(default_factory=dict)
    """Further options of the optimiser, by their timm names, e.g. {betas: [0.9, 0.98]} or {momentum: 0.95}."""

    lr: float = 1e-3
    """Learning rate at the end of the warm-up."""

    weight_decay: float = 0.05
    """Weight decay; biases and norms are exempt, as in timm."""

    layer_decay: float | None = None
    """Factor of the learning rate from each layer to the one below it; one rate for all layers by default."""

    frozen_epochs: int = 0
    """First epochs in which the head learns alone, and the weights and running statistics of the body stay as they are;
    for a student that starts from trained weights."""

    sched: str = "cosine"
    """Schedule of the learning rate, by its timm name."""

    sched_options: dict[str, Any] = field(default_factory=dict)
    """Further options of the schedule, by their timm names, in epochs, e.g. {decay_milestones: [30, 60, 90]}."""

    sched_unit: Literal["update", "epoch"] = "update"
    """Unit after which the learning rate changes: update or epoch."""

    min_lr: float = 0.0
    """Learning rate at the end of the schedule."""

    warmup_epochs: int = 0
    """Epochs over which the learning rate rises linearly."""

    warmup_lr: float | None = None
    """Learning rate at the start of the warm-up; a hundredth of lr by default."""

    distill_warmup_epochs: int = 0
    """Epochs over which the weight of the distillation loss rises linearly from 0."""

    clip_grad: float | None = None
    """Bound on the gradients, as clip_mode defines it; none by default."""

    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """How gradients are bounded: norm (of all together), value (of each), agc (adaptive, relative to the weights)."""

    amp: Literal["bfloat16", "float16"] | None = None
    """Autocast dtype of the student: bfloat16, or float16 with a loss scaler; none by default."""

    channels_last: bool | None = None
    """Lay out images and the student's weights channels last; by default on CUDA, for a student with convolutions."""

    compile: bool = False
    """Compile the student with torch.compile."""

    ema_decay: float | None = None
    """Decay per update of an exponential moving average of the student's weights; none by default."""

    ema_warmup: bool = False
    """Start with a small decay of the moving average."""

    seed: int = 0
    """Seed of the student's weights, of the order of the images, and of dropout."""

    log_every: int = 50
    """Steps between two reads of the losses from the device; every step is logged."""

    log_gradients: bool = False
    """Log the norm of each weighted loss's gradient at the student's head as well, and their ratio, whenever the losses
    are read; not with compile."""

    checkpoint_every: int = 1000
    """Updates between two checkpoints, in addition to the one at the end of each epoch; 0 for only the latter."""

    def __post_init__(self) -> None:
        seed: Any = self.seed
        if isinstance(seed, int) and not 0 <= seed < _SEEDS:  # a narrower range than that of the views' seed
            raise ConfigError(f"seed must be at least 0 and below {_SEEDS}, got {shown(seed)}")
        super().__post_init__()
        check_choices(self)
        for name in _FINITE:
            if (number := getattr(self, name)) is not None and not math.isfinite(number):
                raise ConfigError(f"{name} must be a finite number, got {number}")
        if self.weight_decay < 0 or (self.layer_decay is not None and self.layer_decay <= 0):
            decays = f"{self.weight_decay} and {self.layer_decay}"
            raise ConfigError(f"weight_decay must be 0 or more, and layer_decay above 0, got {decays}")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction must be above 0 and at most 1, got {self.fraction}")
        if self.min_confidence is not None and not 0 < self.min_confidence <= 1:
            raise ConfigError(f"min_confidence must be above 0 and at most 1, got {self.min_confidence}")
        for name in ("warmup_epochs", "distill_warmup_epochs"):
            if not 0 <= getattr(self, name) < self.epochs:
                raise ConfigError(f"{name} must be below epochs = {self.epochs}, got {getattr(self, name)}")
        if not 0 <= self.frozen_epochs <= self.epochs:
            raise ConfigError(f"frozen_epochs must be from 0 to epochs = {self.epochs}, got {self.frozen_epochs}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.ema_warmup and self.ema_decay is None:
            raise ConfigError("ema_warmup is of a moving average, and there is none: give it a decay, ema_decay")
        if self.clip_mode != "norm" and self.clip_grad is None:
            raise ConfigError(f"clip_mode {self.clip_mode!r} needs a bound, and there is none: give clip_grad")
        if self.log_gradients and self.compile:
            raise ConfigError("log_gradients needs a graph that compile discards: leave one of them out")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ConfigError(f"clip_grad must be above 0, got {self.clip_grad}")
