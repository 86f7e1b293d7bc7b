"""Configuration of `kdkit evaluate` and `kdkit teachers check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdkit.config import ColumnsConfig, DeviceConfig, LoadingConfig, OverwriteConfig, StudentConfig, TeacherConfig
from kdkit.config.choices import check_choices
from kdkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TeachersCheckConfig(ColumnsConfig, DeviceConfig, LoadingConfig):
    """Teacher to check, and the images to check it on."""

    teacher: TeacherConfig
    """The teacher model."""

    data: str
    """Labelled images, e.g. a folder of class folders; for an ImageNet teacher, folders named by synset."""

    card: str | None = None
    """Teacher card to compare with, by name or path; by default the teacher's own card, if it has one."""

    limit: int | None = None
    """Number of images drawn from the data; all by default."""

    batch_size: int = 64
    """Images per batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1 image, got {self.limit}")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(StudentConfig, ColumnsConfig, DeviceConfig, LoadingConfig, OverwriteConfig):
    """Student to evaluate, and the images to evaluate it on."""

    data: str
    """Validation images, in any format that `kdkit distill` accepts."""

    input_size: int | None = None
    """Side of the student's square input in pixels; by default that of its training."""

    crop_pct: float | None = None
    """Share of the resized image's side that the centre crop keeps; by default that of its training."""

    amp: Literal["bfloat16", "float16"] | None = None
    """Autocast dtype of the student; none by default."""

    class_names: tuple[str, ...] | None = None
    """Names of the classes, in order, for the one of student and data that has class indices alone: the names, or one
    file with a name per line or a JSON list; none by default."""

    unreadable: Literal["stop", "skip"] = "stop"
    """What to do about an image that cannot be read: stop, or leave it out of the figures, with a warning."""

    output: str | None = None
    """JSON file to write the figures to; none by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        if self.class_names == ():
            raise ConfigError("class_names is empty: name at least 2 classes, or leave it out")
