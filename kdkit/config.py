"""The configuration of a run: frozen dataclasses, serialisable as they stand.

What a cache file's metadata holds is the dict form of these same objects. Each field says what it means and in what
unit; each default is stated here and nowhere else. Needs nothing but the standard library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from kdkit.errors import ConfigError, nearest


@dataclass(frozen=True)
class ReplayRecipe:
    """What a replayed view looks like: every knob of the augmentation, and how many views there are.

    View v of a sample depends on this recipe, the sample's key and v alone.
    """

    size: int = 224
    """Side of the square image that the student sees, pixels."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: least and greatest share of the image's area."""

    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: least and greatest ratio of width to height."""

    interpolation: str = "bicubic"
    """How crops are resized: bilinear, bicubic, or random (drawn for each view)."""

    hflip: float = 0.5
    """Probability of a horizontal flip."""

    auto_augment: str | None = None
    """timm's RandAugment, AutoAugment or AugMix string, e.g. rand-m9-mstd0.5-inc1; none by default."""

    color_jitter: float | None = None
    """Strength of brightness, contrast and saturation jitter; none by default, and not beside auto_augment."""

    num_views: int = 1
    """How many different views V of each sample there are; epoch e shows view e mod V."""

    seed: int = 0
    """Seed that all views are drawn from."""

    augment: bool = True
    """Whether views are random; if not, the one view is resized and centre-cropped as for evaluation."""

    crop_pct: float = 0.875
    """Evaluation view: share of the resized image's side that the centre crop keeps."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        object.__setattr__(self, "ratio", tuple(self.ratio))
        if self.size < 1:
            raise ConfigError(f"size must be at least 1 pixel, got {self.size}")
        if self.num_views < 1:
            raise ConfigError(f"num_views must be at least 1, got {self.num_views}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"scale must be an increasing pair of positive shares, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"ratio must be an increasing pair of positive ratios, got {self.ratio}")
        if not 0 <= self.hflip <= 1:
            raise ConfigError(f"hflip is a probability from 0 to 1, got {self.hflip}")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct is a share above 0 and up to 1, got {self.crop_pct}")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ConfigError(f"interpolation must be one of {known}, got {self.interpolation!r}")
        if not self.augment and self.num_views != 1:
            raise ConfigError(f"the evaluation view is the same each time: num_views must be 1, got {self.num_views}")

    @classmethod
    def evaluation(cls, size: int, *, crop_pct: float = 0.875, interpolation: str = "bicubic") -> Self:
        """The one view that evaluation shows: resize the shorter side to size / crop_pct, crop the centre."""
        return cls(size=size, augment=False, crop_pct=crop_pct, interpolation=interpolation)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is the inverse."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The recipe that `to_dict` wrote; an unknown field is refused by name."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"a recipe has no field {name!r}{nearest(name, known)}")
        return cls(**values)


INTERPOLATIONS = ("bilinear", "bicubic", "random")


@dataclass(frozen=True)
class BuildConfig:
    """How a cache is built; none of it but the codec changes what the cache holds."""

    codec: str = "float16"
    """How a row is stored: float32 (exact), float16 or int8."""

    batch_size: int = 256
    """Images that the teacher is given at once."""

    num_workers: int = 2
    """Processes that load and augment images; 0 loads in the main process."""

    shard_rows: int = 10_000
    """Rows of a shard: what a killed build loses at most; rounded up to whole thousands."""

    pack: bool = True
    """Whether the finished shards become one file; if not, the folder of shards is the cache."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1 image, got {self.batch_size}")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers must be 0 or more, got {self.num_workers}")
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows must be at least 1 row, got {self.shard_rows}")
