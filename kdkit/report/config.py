"""Configuration of `kdkit compare`, `kdkit cache show` and `kdkit report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
class CacheShowConfig:
    """A cache, its images, and which of them are shown."""

    cache: str
    """The cache: its file or its folder of shards."""

    data: str
    """The images that the cache was made from."""

    output: str
    """Picture or page to write: a file that ends in .png or .html."""

    rows: str | None = None
    """Images to show, with commas between them: rows of the data, ranges or keys, e.g. 3,20-29,cat/001.png. By default
    evenly spread."""

    views: str | None = None
    """Views to show of each image, with commas between them: numbers or ranges, e.g. 0-3,7. By default the first
    four."""

    sort: Literal["entropy", "disagreement"] | None = None
    """Show the images first about which the teacher is least certain: by the mean entropy of its predictions, or by how
    much they differ between the views (Jensen-Shannon divergence). Taken from `rows`, or from 4,096 of all."""

    images: int = 8
    """Number of images to show, where `rows` does not name them, or `sort` chooses among them."""

    overwrite: bool = False
    """Replace the output of an earlier run."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, named as in the error, in which the images may differ from those of the cache. Use only if you know that
    the difference is harmless."""

    def __post_init__(self) -> None:
        if not self.output.endswith((".png", ".html")):
            raise ConfigError(f"the output must be a file that ends in .png or .html, got {self.output!r}")
        if self.sort not in (None, "entropy", "disagreement"):
            raise ConfigError(f"sort must be entropy or disagreement, got {self.sort!r}")
        if self.images < 1:
            raise ConfigError(f"images must be at least 1, got {self.images}")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Runs and a cache, and the page that shows them."""

    runs: tuple[str, ...]
    """Folders that kdkit distill or timm's train.py left, or folders of such folders."""

    output: str
    """Page to write: a file that ends in .html."""

    cache: str | None = None
    """Cache to show: its file or its folder of shards."""

    data: str | None = None
    """The images that the cache was made from; with them the page shows views, and measures calibration on them."""

    validation: str | None = None
    """Labelled images on which the best run is measured class by class; by default those that it was validated on."""

    images: int = 1000
    """Images that are evaluated, evenly spread, of the cache and of the validation images each."""

    batch_size: int = 64
    """Images per batch."""

    num_workers: int = 0
    """Processes that load images; 0 loads in the main process."""

    device: str = "cpu"
    """Device that the best run's student runs on: cpu, cuda, cuda:1."""

    overwrite: bool = False
    """Replace the output of an earlier run."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, named as in the error, in which the images may differ from those of the cache. Use only if you know that
    the difference is harmless."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("no run is given: kdkit report runs/* -o report.html")
        if not self.output.endswith(".html"):
            raise ConfigError(f"the output must be a file that ends in .html, got {self.output!r}")
        if self.data is not None and self.cache is None:
            raise ConfigError("data are the images of a cache, and no cache is given: add --cache FILE")
        for name in ("images", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers must be 0 or more, got {self.num_workers}")
