"""Configuration of `kdkit compare`, `kdkit cache show` and `kdkit report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdkit.config import ColumnsConfig, Data, DeviceConfig, LoadingConfig, MismatchConfig, OverwriteConfig
from kdkit.config.choices import check_choices
from kdkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Runs to compare, and how they are printed."""

    runs: tuple[str, ...]
    """Folders that kdkit distill or timm's train.py left, or folders of such folders."""

    json: bool = False
    """Print JSON, with every figure at full precision."""

    csv: bool = False
    """Print CSV, with every figure at full precision."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("no run is given: kdkit compare runs/*")
        if self.json and self.csv:
            raise ConfigError("the table is printed either as JSON or as CSV, got both: leave one out")


@dataclass(frozen=True, kw_only=True)
class CacheShowConfig(ColumnsConfig, DeviceConfig, OverwriteConfig, MismatchConfig):
    """A cache, its images, and which of them are shown."""

    cache: str
    """The cache: its file or its folder of shards."""

    data: Data
    """The images that the cache was made from."""

    output: str
    """Picture or page to write: a file that ends in .png or .html."""

    student: str | None = None
    """Show also what a student predicts of the same views: the folder of a run or an export."""

    arch: str | None = None
    """Function that makes the student, package.module:function, if its run names one: code runs only if you name it."""

    rows: str | None = None
    """Images to show, with commas between them: rows of the data, ranges or keys, e.g. 3,20-29,cat/001.png. By default
    evenly spread."""

    views: str | None = None
    """Views to show of each image, with commas between them: numbers or ranges, e.g. 0-3,7. By default the first
    four."""

    sort: Literal["entropy", "disagreement"] | None = None
    """Show the most uncertain images first: by the mean entropy of the teacher's predictions, or by how much these
    differ between the views (Jensen-Shannon divergence). Chosen from `rows`, else from 4,096 evenly spaced images."""

    images: int = 8
    """Number of images to show, where `rows` does not name them, or `sort` chooses among them."""

    def __post_init__(self) -> None:
        if not self.output.endswith((".png", ".html")):
            raise ConfigError(f"the output must be a file that ends in .png or .html, got {self.output!r}")
        check_choices(self)
        if self.images < 1:
            raise ConfigError(f"images must be at least 1, got {self.images}")


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ColumnsConfig, DeviceConfig, LoadingConfig, OverwriteConfig, MismatchConfig):
    """Runs and a cache, and the page that shows them."""

    runs: tuple[str, ...]
    """Folders that kdkit distill or timm's train.py left, or folders of such folders."""

    output: str
    """Page to write: a file that ends in .html."""

    cache: str | None = None
    """Cache to show: its file or its folder of shards."""

    data: Data | None = None
    """The images that the cache was made from; with them the page shows views, and measures calibration on them."""

    validation: str | None = None
    """Labelled images on which the best run is measured class by class; by default those that it was validated on."""

    arch: str | None = None
    """Function that makes the best run's student, package.module:function, if the run names one: code runs only if you
    name it."""

    images: int = 1000
    """Images that are evaluated, evenly spread, of the cache and of the validation images each."""

    batch_size: int = 64
    """Images per batch."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("no run is given: kdkit report runs/* -o report.html")
        if not self.output.endswith(".html"):
            raise ConfigError(f"the output must be a file that ends in .html, got {self.output!r}")
        if self.data is not None and self.cache is None:
            raise ConfigError("data are the images of a cache, and no cache is given: add --cache FILE")
        if self.images < 1:
            raise ConfigError(f"images must be at least 1, got {self.images}")
        super().__post_init__()
