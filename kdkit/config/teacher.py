"""Which teacher runs: one, or an ensemble."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from kdkit.errors import ConfigError

AMP_DTYPES = ("bfloat16", "float16")
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
    """Side in pixels of the teacher's input; by default that of the views, or the only size that it accepts."""

    dtype: str | None = None
    """Precision of the weights: float32, bfloat16 or float16; float32 by default."""

    autocast: str | None = None
    """Autocast dtype, bfloat16 or float16, over the weights as they are; none by default."""

    class_map: str | None = None
    """The teacher's class for each class of the data: a JSON file with a list of indices or of synsets, or the name of
    an ImageNet family, e.g. imagenet-1k; all of the teacher's classes by default."""

    missing_classes: Literal["error", "min_logit"] = "error"
    """For a class of the map that the teacher does not have: error, or min_logit for the smallest logit of the row."""

    weight: float = 1.0
    """How much its probabilities count in an ensemble, in proportion to the others' weights."""

    def __post_init__(self) -> None:
        known = (
            ("dtype", (None, "float32", *AMP_DTYPES)),
            ("autocast", (None, *AMP_DTYPES)),
            ("missing_classes", ("error", "min_logit")),
        )
        for name, values in known:
            if getattr(self, name) not in values:
                raise ConfigError(f"{name} must be one of {', '.join(map(str, values))}, got {getattr(self, name)!r}")
        if self.input_size is not None and self.input_size < 1:
            raise ConfigError(f"input_size must be at least 1 pixel, got {self.input_size}")
        if self.missing_classes != "error" and self.class_map is None:
            raise ConfigError(f"missing_classes={self.missing_classes!r} needs a class_map, and there is none")
        if not 0 <= self.weight < float("inf"):
            raise ConfigError(f"weight must be a number of 0 or more, got {self.weight}")


@dataclass(frozen=True)
class TeacherConfig(SingleTeacherConfig):
    """Which teacher runs."""

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
