"""Fields that several commands have in common, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kdkit.errors import ConfigError
from kdkit.runtime.hardware import AUTO, choose_workers


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where models run."""

    device: str = AUTO
    """Device that models run on: auto (CUDA, else MPS, else the CPU), cpu, mps, cuda or cuda:1."""


@dataclass(frozen=True, kw_only=True)
class LoadingConfig:
    """How images are loaded."""

    batch_size: int = 256
    """Images per batch, on each process."""

    num_workers: int | Literal["auto"] = AUTO
    """Worker processes that load and augment images: auto (from the CPUs available), or a number; 0 loads in the main
    process."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1 image, got {self.batch_size}")
        choose_workers(self.num_workers)

    @property
    def workers(self) -> int:
        """The number of worker processes, `auto` resolved."""
        return choose_workers(self.num_workers)


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Columns of the images and labels, if the data has columns: hfds/NAME:SPLIT, a CSV or a Parquet file."""

    image_column: str | None = None
    """Column of the images or their paths, if the data has columns; image, or the only candidate, by default."""

    label_column: str | None = None
    """Column of the labels, if the data has columns; label, or the only candidate, by default. For several labels per
    image of a table: columns of 0 and 1 as sea,city, or a column of names with its separator as tags[|]."""

    @property
    def columns(self) -> dict[str, Any]:
        """The two columns, as `kdkit.open_dataset` takes them."""
        return {"image_column": self.image_column, "label_column": self.label_column}


@dataclass(frozen=True, kw_only=True)
class MismatchConfig:
    """Differences that are accepted."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, named as in the error, that may differ from the cache, e.g. recipe.seed. Use only if you know that the
    difference is harmless."""


@dataclass(frozen=True, kw_only=True)
class OverwriteConfig:
    """What happens to output that exists."""

    overwrite: bool = False
    """Replace the output of an earlier run. A folder that holds anything else is refused."""
