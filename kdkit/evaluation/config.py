"""Configuration of `kdkit evaluate` and `kdkit teachers check`."""

from __future__ import annotations

from dataclasses import dataclass

from kdkit.config.student import StudentConfig
from kdkit.config.teacher import TeacherConfig
from kdkit.errors import ConfigError


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
