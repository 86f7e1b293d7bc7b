"""Configuration of the commands that describe, pack and export a cache."""

from __future__ import annotations

from dataclasses import dataclass

from kdkit.config import OverwriteConfig
from kdkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CacheInfoConfig:
    """Cache to describe."""

    cache: str
    """Cache: its file or its folder of shards."""

    all: bool = False
    """Print every detail: recipe, fidelity at each temperature, checksums, versions."""

    json: bool = False
    """Print everything as one JSON object."""

    plot: str | None = None
    """PNG file to draw the teacher's confidence and entropy to, view by view; none by default."""

    def __post_init__(self) -> None:
        if self.json and self.all:
            raise ConfigError("all and json exclude each other: JSON holds every detail")


@dataclass(frozen=True, kw_only=True)
class CachePackConfig:
    """Cache to pack."""

    cache: str
    """Packed file to write, whose shards are in FILE.parts; or that folder."""


@dataclass(frozen=True, kw_only=True)
class CacheExportConfig(OverwriteConfig):
    """Rows of a cache to write for other tools."""

    cache: str
    """Cache: its file or its folder of shards."""

    output: str
    """File to write; ends in .npz or .safetensors."""

    view: int = 0
    """Number of the view."""

    stream: str = "logits"
    """Stream: logits, or the name of a feature that the cache holds."""
