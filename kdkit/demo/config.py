"""Configuration of `kdkit demo`."""

from __future__ import annotations

from dataclasses import dataclass

from kdkit.config import OverwriteConfig
from kdkit.errors import ConfigError


@dataclass(frozen=True)
class DemoConfig(OverwriteConfig):
    """The demonstration on scikit-learn's digits."""

    output: str = "kdkit-demo"
    """Folder for the cache, metrics.jsonl, summary.csv and students.png, a picture of accuracy and time."""

    seeds: int = 3
    """Students trained in each way, one per seed."""

    epochs: int = 4
    """Epochs of each student, over 1,347 training images."""

    teacher_epochs: int = 4
    """Epochs of the teacher, over 1,347 training images."""

    num_views: int = 4
    """Views of each image that the teacher is run on."""

    num_workers: int = 1
    """Worker processes that augment images; 0 augments in the main process."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.seeds}")
        for name in ("epochs", "teacher_epochs"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} must be at least 2, got {getattr(self, name)}")
