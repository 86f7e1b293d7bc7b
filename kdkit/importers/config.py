"""Configuration of an import."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kdkit.config import ColumnsConfig
from kdkit.errors import ConfigError, nearest
from kdkit.importers import IMPORTERS
from kdkit.recipe import ViewRecipe
from kdkit.runtime.hardware import AUTO, choose_workers


@dataclass(frozen=True, kw_only=True)
class CacheImportConfig(ColumnsConfig):
    """Cache of another project, or arrays, to import."""

    format: str
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

    label_type: str | None = None
    """Type of fkd's labels, known from their shape except for marginal_renorm, which has to be named."""

    keys_file: str | None = None
    """Text file with the key of each row of arrays, one in a line; by default the file's keys, else the images
    of folders in torchvision's order (class folders, then files, each sorted as texts), other data's in its own."""

    recipe: ViewRecipe | None = None
    """What the views of arrays look like: by default the evaluation view of 224 pixels, or of another size, crop_pct or
    interpolation; random ones, e.g. rrc, only if they are described. Of fkd and of arrays with boxes only the size is
    used."""

    num_workers: int | Literal["auto"] = AUTO
    """Worker processes that read the source: auto (from the CPUs available) or a number; 0 reads in the main one."""

    def __post_init__(self) -> None:
        if self.format not in IMPORTERS:
            known = ", ".join(IMPORTERS)
            raise ConfigError(f"no importer reads {self.format!r}{nearest(self.format, IMPORTERS)}; known: {known}")
        choose_workers(self.num_workers)

    def options_of(self, importer: Callable[..., Any]) -> dict[str, Any]:
        """The options that are given, as arguments of the importer of this format.

        Raises:
            ConfigError: the importer takes no such option.
        """
        taken = inspect.signature(importer).parameters
        given: dict[str, Any] = {name: getattr(self, name) for name in ("num_classes", "label_type", "keys_file")}
        if "size" in taken:
            given["size"] = None if self.recipe is None else self.recipe.size
        else:
            given["recipe"] = self.recipe
        options = {name: value for name, value in given.items() if value is not None}
        for name in options:
            if name not in taken:
                raise ConfigError(f"{name} is not an option of the format {self.format}: leave it out")
        return options
