"""Configuration of the commands that make, extend and verify a cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kdkit.config.teacher import TeacherConfig
from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe


@dataclass(frozen=True)
class BuildConfig:
    """How a cache is built; none of it but streams and codecs changes what the cache holds."""

    streams: tuple[str, ...] = ("logits",)
    """What is kept of each answer: logits, and the teacher's taps, such as pooled, tokens or stages.3; logits may be
    left out."""

    codec: str | None = None
    """How a row of logits is stored: float32 (exact), float16, int8, topk or lowrank; by default lowrank where that is
    smaller than float16, else float16."""

    codec_options: dict[str, Any] = field(default_factory=dict)
    """Options of the codec, e.g. {row_bytes: 96} for lowrank or {k: 10} for topk."""

    feature_codec: str = "float16"
    """How a row of any other stream is stored: float16, or int8 with a least value and a step for each row, token or
    channel."""

    batch_size: int = 256
    """Images that the teacher is given at once."""

    num_workers: int = 2
    """Processes that load and augment images; 0 loads in the main process."""

    shard_rows: int = 10_000
    """Rows of a shard: what a killed build loses at most; rounded up to whole thousands, and fewer where a shard would
    be larger than 256 MiB."""

    pack: bool = True
    """Whether the finished shards become one file; if not, the folder of shards is the cache."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1 image, got {self.batch_size}")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers must be 0 or more, got {self.num_workers}")
        if not self.streams or len(set(self.streams)) != len(self.streams):
            raise ConfigError(f"streams must name at least one stream, and none twice, got {list(self.streams)}")
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows must be at least 1 row, got {self.shard_rows}")


@dataclass(frozen=True, kw_only=True)
class CacheEstimateConfig:
    """What a cache would be made from."""

    data: str
    """Training images: a folder of class folders, a .tar or .zip of them, a folder of tars, or hfds/NAME:SPLIT."""

    teacher: TeacherConfig
    """Who is asked."""

    recipe: ViewRecipe = field(default_factory=ViewRecipe)
    """What the views look like; on the command line also a preset: --recipe deit."""

    build: BuildConfig = field(default_factory=BuildConfig)
    """How the cache is built."""

    device: str = "cpu"
    """Where the teacher runs: cpu, cuda, cuda:1."""


@dataclass(frozen=True, kw_only=True)
class CacheBuildConfig(CacheEstimateConfig):
    """What a cache is made from, and where it goes."""

    output: str
    """The cache file to be, e.g. teacher.h5."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, as an error names them, in which a build that goes on may differ from what is there, e.g.
    teacher.weights_sha256: for one who knows why it does no harm."""


@dataclass(frozen=True, kw_only=True)
class CacheExtendConfig:
    """Which cache gets more views, and from what."""

    cache: str
    """The cache: its file or its folder of shards."""

    data: str
    """Folder of the images that it was made from."""

    teacher: TeacherConfig
    """Who made it."""

    num_views: int
    """Views that it shall have of each image, those that are there included."""

    batch_size: int = BuildConfig.batch_size
    """Images that the teacher is given at once."""

    num_workers: int = BuildConfig.num_workers
    """Processes that load and augment images; 0 loads in the main process."""

    device: str = "cpu"
    """Where the teacher runs: cpu, cuda, cuda:1."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, as an error names them, in which this run may differ from the cache, e.g. teacher.weights_sha256: for one
    who knows why it does no harm."""


@dataclass(frozen=True, kw_only=True)
class CacheVerifyConfig:
    """Which cache is verified, and against whom."""

    cache: str
    """The cache: its file or its folder of shards."""

    data: str | None = None
    """Folder of the images that it was made from; with it and the teacher, rows are computed again."""

    teacher: TeacherConfig | None = None
    """Who made it."""

    rows: int = 64
    """How many random rows the teacher is asked about again."""

    device: str = "cpu"
    """Where the teacher runs: cpu, cuda, cuda:1."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, as an error names them, in which teacher or images may differ from the cache's, e.g. teacher.dtype; what
    the teacher says is compared all the same."""

    def __post_init__(self) -> None:
        if (self.data is None) != (self.teacher is None):
            raise ConfigError("computing rows again needs both --data and --teacher.model: give both or neither")
        if self.rows < 1:
            raise ConfigError(f"rows must be at least 1, got {self.rows}")
