"""The view recipe: the augmentation of the views, and their number per image.

Needs neither torch nor timm. Every field is checked when a run opens a cache. A field added later must have a default
that changes nothing, so that older caches stay usable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from typing_extensions import Self

from kdkit.bounds import check_auto_augment, check_fields
from kdkit.errors import ConfigError, UnknownNameError, nearest

Interpolation = Literal["bilinear", "bicubic", "random"]
ErasingMode = Literal["const", "rand", "pixel"]


@dataclass(frozen=True)
class ViewRecipe:
    """A recipe of views: every setting of the augmentation, and the number of views.

    View v of a sample depends only on this recipe, the sample's key and v; if views are mixed, also on its partner's
    key. `ViewRecipe.preset` makes published recipes.
    """

    size: int = 224
    """Side of the views in pixels."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: smallest and largest share of the image's area."""

    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: smallest and largest ratio of width to height."""

    interpolation: Interpolation = "bicubic"
    """How crops are resized: bilinear, bicubic, or random (drawn for each view)."""

    hflip: float = 0.5
    """Probability of a horizontal flip."""

    auto_augment: str | None = None
    """timm's RandAugment, AutoAugment, AugMix or 3-augment string, e.g. rand-m9-mstd0.5-inc1 or 3a; none by default."""

    color_jitter: float | None = None
    """Strength of brightness, contrast and saturation jitter; may be combined only with auto_augment="3a"."""

    erasing: float = 0.0
    """Probability that rectangles of a view are erased, in its uint8 pixels, before views are mixed."""

    erasing_mode: ErasingMode = "const"
    """What erased pixels become: const (ImageNet's mean), rand (one random colour per rectangle) or pixel (noise)."""

    erasing_count: int = 1
    """Largest number of erased rectangles: the count is drawn from 1 to this value; the area is divided among them."""

    mixup_alpha: float = 0.0
    """Mixup: two views are blended, with a share drawn from Beta(alpha, alpha); 0 for no mixup."""

    cutmix_alpha: float = 0.0
    """CutMix: two views swap a rectangle, with an area drawn from Beta(alpha, alpha); 0 for no cutmix."""

    mix_prob: float = 1.0
    """Probability that a pair is mixed, if mixup or cutmix is enabled."""

    switch_prob: float = 0.5
    """Probability of cutmix, rather than mixup, for a pair that is mixed, if both are enabled."""

    views_per_partner: int = 1
    """Mixing: each block of n consecutive views (0 to n - 1, n to 2n - 1, ...) of a sample has one partner, so that one
    decode of a pair serves n views of both; how they are mixed is drawn for each view. 1: a partner for each view."""

    teacher_size: int | None = None
    """Side in pixels of the teacher's views: the same random draws, rendered at this size; size by default."""

    transform: str | None = None
    """Identity of a custom transform, which replaces crop, flip, colours and erasing; set by
    ReplayedDataset(..., transform=...)."""

    recorded: str | None = None
    """Steps that a cache holds the parameters of for each view, instead of random ones, e.g. crop+ops2+erasing+mixing;
    set by an importer."""

    num_views: int = 1
    """Number V of different views per image; epoch e shows view e mod V. Without a cache, kdkit distill shows a new
    view in each epoch by default."""

    seed: int = 0
    """Base seed of all views; see kdkit.data.views.seed.view_seed."""

    augment: bool = True
    """Use random views; otherwise use one view, resized and centre-cropped as for evaluation."""

    crop_pct: float = 0.875
    """Evaluation view: share of the resized image's side that the centre crop keeps."""

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "scale", tuple(self.scale))
        object.__setattr__(self, "ratio", tuple(self.ratio))
        self._check_numbers()
        self._check_names()
        self._check_combinations()

    def _check_numbers(self) -> None:
        for name in ("hflip", "erasing", "mix_prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a probability from 0 to 1, got {getattr(self, name)}")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be 0 (off) or greater, got {getattr(self, name)}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale must be an increasing pair of shares above 0 and up to 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1] < float("inf"):
            raise ConfigError(f"ratio must be an increasing pair of positive ratios, got {self.ratio}")
        if self.auto_augment is not None:
            check_auto_augment(self.auto_augment)

    def _check_names(self) -> None:
        for name, known in (("interpolation", get_args(Interpolation)), ("erasing_mode", get_args(ErasingMode))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def _check_combinations(self) -> None:
        if self.auto_augment and self.color_jitter and "3a" not in self.auto_augment:
            raise ConfigError("timm ignores color_jitter when auto_augment is set: leave one of them out")
        if not self.augment:
            self._check_evaluation()
        if self.transform is not None:
            self._check_custom_transform()
        if self.recorded is not None:
            self._check_recorded()

    def _check_evaluation(self) -> None:
        if self.interpolation == "random":
            raise ConfigError("the evaluation view has no randomness: interpolation must be bilinear or bicubic")
        if self.num_views != 1:
            raise ConfigError(f"the evaluation view is the same each time: num_views must be 1, got {self.num_views}")
        if self.erasing or self.mixes:
            raise ConfigError("the evaluation view has no randomness: erasing, mixup_alpha and cutmix_alpha must be 0")

    def _check_custom_transform(self) -> None:
        for name in _DRAWN_BY_TIMM:
            if getattr(self, name) != _default(name):
                raise ConfigError(f"a custom transform replaces {name}: leave it at its default")
        if self.teacher_size is not None:
            raise ConfigError("teacher_size needs a transform that can be rendered at two sizes; a custom one cannot")

    def _check_recorded(self) -> None:
        for name in (*_DRAWN_BY_TIMM, "mixup_alpha", "cutmix_alpha", "transform"):
            if name != "interpolation" and getattr(self, name) != _default(name):
                raise ConfigError(f"recorded views have no randomness: leave {name} at its default")
        if self.interpolation == "random":
            raise ConfigError("recorded views have no randomness: interpolation must be bilinear or bicubic")

    @property
    def mixes(self) -> bool:
        """Whether views are mixed in pairs."""
        return self.mix_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    @classmethod
    def evaluation(cls, size: int, *, crop_pct: float = 0.875, interpolation: Interpolation = "bicubic") -> Self:
        """The one view of an evaluation: resize the shorter side to size / crop_pct, crop the centre."""
        return cls(size=size, augment=False, crop_pct=crop_pct, interpolation=interpolation)

    @classmethod
    def preset(cls, name: str, **fields: Any) -> Self:
        """A published recipe by name: eval, rrc, deit, timm-a1 or funmatch; `fields` override its settings.

        Raises:
            UnknownNameError: there is no such preset.
        """
        if name not in PRESETS:
            raise UnknownNameError(f"there is no preset {name!r}{nearest(name, PRESETS)}; known: {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **fields})

    def describe(self) -> str:
        """The fields that differ from their defaults, and always the size and the number of views."""
        names = [field.name for field in dataclasses.fields(self)]
        changed = [name for name in names if getattr(self, name) != _default(name)]
        shown = dict.fromkeys(["size", "num_views", *changed])
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)

    def describe_steps(self) -> str:
        """What is done to an image, for people."""
        if self.recorded:
            return f"recorded {self.recorded}"
        if not self.augment:
            return "resized and cropped at the centre"
        steps = {} if self.transform else {"flips": self.hflip, "colours": self.color_jitter, "erasing": self.erasing}
        steps |= {"mixup": self.mixup_alpha, "cutmix": self.cutmix_alpha} if self.mixes else {}
        crops = " to ".join(f"{100 * share:g}" for share in self.scale)
        drawn = [self.transform] if self.transform else [f"crops of {crops} %", self.auto_augment]
        return ", ".join([*filter(None, drawn), *(f"{name} {value:g}" for name, value in steps.items() if value)])

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

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe that `to_dict` wrote, with defaults for the fields that were added since."""
        return {**cls().to_dict(), **values}


_DRAWN_BY_TIMM = ("scale", "ratio", "interpolation", "hflip", "auto_augment", "color_jitter", "erasing", "augment")

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # timm's transforms_imagenet_eval at its default crop_pct.
    "eval": {"augment": False},
    # Szegedy et al. 2015, "Going deeper with convolutions", section 6, with torchvision's default ranges.
    "rrc": {},
    # Touvron et al. 2021, "Training data-efficient image transformers", table 9; facebookresearch/deit main.py.
    "deit": {
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "erasing": 0.25,
        "erasing_mode": "pixel",
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
    },
    # Wightman et al. 2021, "ResNet strikes back", table 2, procedure A1; interpolation as timm's train.py has it.
    "timm-a1": {
        "interpolation": "random",
        "auto_augment": "rand-m7-mstd0.5-inc1",
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
    },
    # Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent"; big_vision
    # configs/proj/distill/bit_i1k.py: inception_crop (area 5 to 100 %), flip_lr, mixup with p = 1.
    "funmatch": {"scale": (0.05, 1.0), "interpolation": "bilinear", "mixup_alpha": 1.0},
}
"""Fields in which a published recipe differs from the defaults. Repeated augmentation belongs to the sampler."""


def _default(name: str) -> Any:
    return next(field.default for field in dataclasses.fields(ViewRecipe) if field.name == name)
