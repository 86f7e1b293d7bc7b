"""Configuration of a teacher: a single model, or an ensemble."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from kdkit.config.choices import check_choices
from kdkit.config.normalization import parse_normalization
from kdkit.errors import ConfigError

EMA = "ema"
"""As a teacher: the moving average of the student that is trained."""


@dataclass(frozen=True)
class SingleTeacherConfig:
    """One teacher, alone or in an ensemble."""

    model: str
    """Teacher: a timm name with or without tag (resnet50.a1_in1k), a folder that `kdkit distill` or `kdkit export`
    wrote, a weights file (with --arch) or the path of a teacher card; kdkit distill also takes ema (the student's
    moving average)."""

    arch: str | None = None
    """timm architecture of the teacher, if the teacher is a weights file, e.g. resnet50."""

    checkpoint: str | None = None
    """Weights file (safetensors or torch) instead of timm's pretrained weights."""

    input_size: int | None = None
    """Side of the teacher's input in pixels; by default the views' size, or the only size that the model accepts."""

    normalization: str | None = None
    """Normalisation of the teacher's input: imagenet, inception (0.5/0.5), clip, none, or MEAN/STD of pixels from 0 to
    1, with one number or three each; by default what the model states, else ImageNet's."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of the weights; float32 by default, which is kept on CUDA too if it is given."""

    autocast: Literal["bfloat16", "float16"] | None = None
    """Autocast dtype of the forward pass, which leaves the weights as they are; none by default, and bfloat16 on CUDA
    in a build and in distill, where a check finds the outputs as good."""

    class_map: str | None = None
    """The teacher's class for each class of the data: a JSON file with a list of indices or of class names, or an
    ImageNet family, e.g. imagenet-1k; by default the teacher's own classes."""

    missing_classes: Literal["error", "min_logit"] = "error"
    """For a class of the map that the teacher does not have: error, or min_logit for the smallest logit of the row."""

    weight: float = 1.0
    """Weight of the teacher's probabilities in an ensemble, relative to the other weights."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.missing_classes != "error" and self.class_map is None:
            raise ConfigError(f"missing_classes={self.missing_classes!r} needs a class_map, and there is none")
        if self.normalization is not None:
            parse_normalization(self.normalization)
        if self.arch is not None and self.checkpoint is not None:
            raise ConfigError("a teacher with arch is a weights file itself: leave out checkpoint")
        if not 0 <= self.weight < float("inf"):
            raise ConfigError(f"weight must be a number of 0 or more, got {self.weight}")


@dataclass(frozen=True)
class TeacherConfig(SingleTeacherConfig):
    """The teacher model, or an ensemble of several."""

    ensemble: tuple[SingleTeacherConfig, ...] = ()
    """Further teachers of an ensemble whose probabilities are averaged, each with the options of this one, e.g.
    [{model: resnet50, input_size: 288, weight: 2}]."""

    @property
    def takes_any_precision(self) -> bool:
        """Whether no member is given a dtype or an autocast, so that a build may choose."""
        return all(member.dtype is None and member.autocast is None for member in (self, *self.ensemble))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ensemble and self.weight != 1:
            raise ConfigError(f"weight is that of a teacher in an ensemble, got {self.weight} for a single teacher")
        given = [f.name for f in fields(self) if f.name != "model" and getattr(self, f.name) != f.default]
        if self.model == EMA and given:
            raise ConfigError(f"the teacher 'ema' is the student's moving average as it is: leave out {given[0]}")
