"""Configuration of `kdkit demo`."""

from __future__ import annotations

from dataclasses import dataclass

from kdkit.errors import ConfigError


@dataclass(frozen=True)
class DemoConfig:
    """The demonstration on scikit-learn's digits."""

    output: str = "kdkit-demo"
    """Folder for the cache, metrics.jsonl, summary.csv and the learning curves."""

    seeds: int = 3
    """Students trained in each of the three ways."""

    epochs: int = 8
    """Passes over the 1,347 training images, for each student."""

    teacher_epochs: int = 6
    """Passes over the 1,347 training images, for the teacher."""

    num_views: int = 8
    """Replayed views of each image that the teacher is run on."""

    num_workers: int = 1
    """Processes that augment images; 0 augments in the main process."""

    overwrite: bool = False
    """Whether the files of an earlier run in the output folder are replaced; a folder with other files is refused."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.seeds}")
        for name in ("epochs", "teacher_epochs"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} must be at least 2, got {getattr(self, name)}")
