"""Configuration of the commands that make, extend and verify a cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kdkit.config import ColumnsConfig, Data, DeviceConfig, LoadingConfig, MismatchConfig, TeacherConfig
from kdkit.config.choices import check_choices
from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe

Engine = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class BuildLoadingConfig(LoadingConfig):
    """How the images of a build are loaded."""

    memory: int = 2048
    """Memory in MiB, on each process, for a batch of pixels and an unfinished shard of each view that is built at the
    same time: an image is decoded once for as many views as fit."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig(BuildLoadingConfig):
    """How a cache is built. Of these fields, only streams, codecs and unreadable change what the cache holds; compile
    changes how it is rounded."""

    streams: tuple[str, ...] = ("logits",)
    """Streams to store: logits, and taps of the teacher, e.g. pooled, tokens or stages.3; logits may be
    left out."""

    codec: str | None = None
    """Codec of the logits: float32 (exact), float16, int8, topk, lowrank, or head, for more classes than the
    teacher's last layer takes features: it keeps these, and the layer once; by default lowrank if its rows are
    smaller than float16's, else float16. Of a multi-label teacher: sigmoid_float32, sigmoid_float16 or sigmoid_int8,
    of which sigmoid_float16 is the default."""

    row_bytes: int | None = None
    """Maximum bytes per row of logits, for the codecs lowrank, head and topk; without a codec, float16 if it fits, else
    lowrank. Default of lowrank: 96, of head: 256."""

    codec_options: dict[str, Any] = field(default_factory=dict)
    """Options of the codec, e.g. {k: 10} for topk."""

    feature_codec: str = "float16"
    """Codec of all other streams: float16; float32 (exact); int8 with a minimum and a step per row, token or channel;
    sparse, which keeps the numbers that are not near zero, for features after a ReLU; dense, fitted to some rows, for
    all others; or compact: whichever of these two loses less, for each stream."""

    feature_bytes: int | None = None
    """Bytes per row of each stream of features in sparse, dense or compact; a tenth of float16's by default."""

    shard_rows: int = 10_000
    """Rows per shard; a killed build loses at most the shards in progress. Rounded up to whole
    thousands; fewer if a shard would exceed 256 MiB."""

    unreadable: Literal["stop", "skip"] = "stop"
    """Handling of images that cannot be read: stop and list all of them; or skip, which reads every image once before
    the build, leaves the unreadable ones out and records them in the cache."""

    compile: bool = False
    """Compile the teacher with torch.compile, which takes a minute or more and pays in a long build on a GPU."""

    pack: bool = True
    """Pack the finished shards into one file; otherwise keep the folder of shards as the cache."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        if not self.streams or len(set(self.streams)) != len(self.streams):
            raise ConfigError(f"streams must name at least one stream, and none twice, got {list(self.streams)}")
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows must be at least 1 row, got {self.shard_rows}")
        if self.row_bytes is not None and self.row_bytes < 1:
            raise ConfigError(f"row_bytes must be at least 1 byte, got {self.row_bytes}")
        if self.feature_bytes is not None and self.feature_bytes < 1:
            raise ConfigError(f"feature_bytes must be at least 1 byte, got {self.feature_bytes}")


@dataclass(frozen=True, kw_only=True)
class CacheEstimateConfig(ColumnsConfig, DeviceConfig):
    """Inputs of the cache whose cost is estimated."""

    data: Data
    """Training images: a folder of class folders or of images only, a .tar or .zip, a folder of WebDataset shards,
    hfds/NAME:SPLIT, or a .csv or .parquet of paths and labels; or several, of which some may have no labels."""

    teacher: TeacherConfig
    """The teacher model."""

    recipe: ViewRecipe | None = None
    """What the views look like; random crops and flips at 224 pixels, one view, by default."""

    build: BuildConfig = field(default_factory=BuildConfig)
    """How the cache is built."""


@dataclass(frozen=True, kw_only=True)
class CacheBuildConfig(CacheEstimateConfig, MismatchConfig):
    """Inputs of a cache, and the file to write."""

    output: str
    """Cache file to write, e.g. teacher.h5; an interrupted build resumes there."""

    like: str | None = None
    """Cache whose recipe, samples and classes this one takes, so that one student can learn from both."""

    engine: Engine = "local"
    """Where the teacher runs: local (this process and its ranks) or ray (actors on a Ray cluster)."""

    actors: int = 1
    """Number of actors of the engine ray; each runs a copy of the teacher on one GPU or CPU."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.like is not None and self.recipe is not None:
            raise ConfigError("like takes the recipe of its cache: leave out --recipe, --views, --size and --recipe.*")
        if self.actors < 1:
            raise ConfigError(f"actors must be at least 1, got {self.actors}")


@dataclass(frozen=True, kw_only=True)
class CacheExtendConfig(ColumnsConfig, DeviceConfig, BuildLoadingConfig, MismatchConfig):
    """Cache to extend by more views or images, and the inputs that it was made from."""

    cache: str
    """Cache: its file or its folder of shards."""

    data: Data
    """Images that the cache was made from, and further ones, on which the teacher runs in all views."""

    teacher: TeacherConfig | None = None
    """The teacher that made the cache."""

    num_views: int | None = None
    """Total views per image after extending, including existing views; as many as there are by default."""

    unreadable: Literal["stop", "skip"] = BuildConfig.unreadable
    """Handling of further images that cannot be read: stop and list all of them; or skip, which reads every further
    image once, leaves the unreadable ones out and records them in the cache."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)


@dataclass(frozen=True, kw_only=True)
class CacheVerifyConfig(ColumnsConfig, DeviceConfig, MismatchConfig):
    """Cache to verify, and optionally the teacher to verify it against."""

    cache: str
    """Cache: its file or its folder of shards."""

    data: Data | None = None
    """Images that the cache was made from; outputs are compared with labels, and the teacher runs on some."""

    teacher: TeacherConfig | None = None
    """The teacher that made the cache."""

    rows: int = 64
    """Number of random rows on which the teacher is run again."""

    def __post_init__(self) -> None:
        if self.data is None and self.teacher is not None:
            raise ConfigError("comparing rows with the teacher needs its images: kdkit cache verify FILE DATA")
        if self.rows < 1:
            raise ConfigError(f"rows must be at least 1, got {self.rows}")
