"""Configuration of the commands that make, extend and verify a cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kdkit.config.teacher import TeacherConfig
from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class BuildConfig:
    """How a cache is built; none of it but streams and codecs changes what the cache holds."""

    streams: tuple[str, ...] = ("logits",)
    """Outputs to store: logits and the teacher's taps, such as pooled, tokens or stages.3; logits may be left out."""

    codec: str | None = None
    """How a row of logits is stored: float32 (exact), float16, int8, topk or lowrank; by default lowrank where that is
    smaller than float16, else float16."""

    codec_options: dict[str, Any] = field(default_factory=dict)
    """Options of the codec, e.g. {row_bytes: 96} for lowrank or {k: 10} for topk."""

    feature_codec: str = "float16"
    """How a row of any other stream is stored: float16, or int8 with a minimum and a step per row, token or channel."""

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
    """Cache to estimate."""

    data: str
    """Training images: a folder of class folders, a .tar or .zip of them, a folder of tars, or hfds/NAME:SPLIT."""

    teacher: TeacherConfig
    """The teacher model."""

    recipe: ViewRecipe = field(default_factory=ViewRecipe)
    """What the views look like; on the command line also a preset: --recipe deit."""

    build: BuildConfig = field(default_factory=BuildConfig)
    """How the cache is built."""

    device: str = "cpu"
    """Where the teacher runs: cpu, cuda, cuda:1."""


@dataclass(frozen=True, kw_only=True)
class CacheBuildConfig(CacheEstimateConfig):
    """Cache to build."""

    output: str
    """The cache file to be, e.g. teacher.h5."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, as an error names them, in which a resumed build may differ from what is at the output, e.g.
    teacher.weights_sha256. Use only if you know that the difference is harmless."""

    engine: Engine = "local"
    """Where the teacher runs: local (this process and its ranks) or ray (actors on a Ray cluster)."""

    actors: int = 1
    """Actors of the engine ray, each with a teacher of its own on one GPU or CPU."""

    def __post_init__(self) -> None:
        if self.actors < 1:
            raise ConfigError(f"actors must be at least 1, got {self.actors}")


@dataclass(frozen=True, kw_only=True)
class CacheExtendConfig:
    """Cache to extend to more views."""

    cache: str
    """The cache: its file or its folder of shards."""

    data: str
    """The images that it was made from."""

    teacher: TeacherConfig
    """The teacher that it was made with."""

    num_views: int
    """Views of each image after the extension, the present ones included."""

    batch_size: int = BuildConfig.batch_size
    """Images that the teacher is given at once."""

    num_workers: int = BuildConfig.num_workers
    """Processes that load and augment images; 0 loads in the main process."""

    device: str = "cpu"
    """Where the teacher runs: cpu, cuda, cuda:1."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, as an error names them, in which this run may differ from the cache, e.g. teacher.weights_sha256. Use
    only if you know that the difference is harmless."""


@dataclass(frozen=True, kw_only=True)
class CacheVerifyConfig:
    """Cache to verify, and optionally the teacher to verify it against."""

    cache: str
    """The cache: its file or its folder of shards."""

    data: str | None = None
    """The images that it was made from; with them and the teacher, rows are computed again."""

    teacher: TeacherConfig | None = None
    """The teacher that it was made with."""

    rows: int = 64
    """Random rows that the teacher is run on again."""

    device: str = "cpu"
    """Where the teacher runs: cpu, cuda, cuda:1."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, as an error names them, in which teacher or images may differ from the cache's, e.g. teacher.dtype; the
    teacher's outputs are compared all the same."""

    def __post_init__(self) -> None:
        if (self.data is None) != (self.teacher is None):
            raise ConfigError("computing rows again needs both --data and --teacher.model: give both or neither")
        if self.rows < 1:
            raise ConfigError(f"rows must be at least 1, got {self.rows}")
