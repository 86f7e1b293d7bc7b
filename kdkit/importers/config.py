"""Configuration of an import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe

Format = Literal["ml-dr", "fkd", "arrays"]
LabelType = Literal["hard", "smoothing", "marginal_smoothing_k5", "marginal_smoothing_k10", "marginal_renorm"]


@dataclass(frozen=True, kw_only=True)
class CacheImportConfig:
    """Cache of another project, or arrays, to import."""

    format: Format
    """Format of the source: ml-dr (apple/ml-dr, ImageNet+), fkd (szq0214/FKD) or arrays (.npy, .npz, .safetensors)."""

    source: str
    """Source: for ml-dr and fkd a folder or an uncompressed tar of their files; for arrays a file."""

    data: str
    """Images that the source was made from, all of them."""

    output: str
    """Cache file to write, e.g. teacher.h5; an import that was stopped resumes there."""

    codec: str | None = None
    """Codec of the labels: float32, float16, int8, topk or lowrank; by default topk with the entries that the source
    has, or float16 for dense arrays."""

    num_classes: int | None = None
    """Classes of the labels, where the source does not tell: for fkd (default 1000) and for arrays with ids."""

    label_type: LabelType | None = None
    """Type of fkd's labels, by default known from their shape; only marginal_renorm has to be named."""

    keys_file: str | None = None
    """Text file with the key of each row of arrays, one in a line; by default the file's keys, else the sorted keys of
    the data."""

    recipe: ViewRecipe = field(default_factory=lambda: ViewRecipe.evaluation(224))
    """What the views of arrays look like, by default the evaluation view; of fkd and of arrays with boxes only the size
    is used, of ml-dr nothing."""

    num_workers: int = 0
    """Worker processes that read the source; 0 reads in the main process."""

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ConfigError(f"num_workers must be 0 or more, got {self.num_workers}")
        if self.label_type is not None and self.format != "fkd":
            raise ConfigError(f"label_type is an option of fkd, not of {self.format}: leave it out")
        if self.keys_file is not None and self.format != "arrays":
            raise ConfigError(f"keys_file is an option of arrays, not of {self.format}: leave it out")

    @property
    def options(self) -> dict[str, object]:
        """Arguments of the importer of this format, without those that all importers take."""
        if self.format == "ml-dr":
            return {}
        if self.format == "fkd":
            classes = {} if self.num_classes is None else {"num_classes": self.num_classes}
            return {"size": self.recipe.size, "label_type": self.label_type, **classes}
        return {"recipe": self.recipe, "num_classes": self.num_classes, "keys_file": self.keys_file}
