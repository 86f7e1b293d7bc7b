"""Configuration of the commands that describe, pack and export a cache."""

from __future__ import annotations

from dataclasses import dataclass

from kdkit.config import OverwriteConfig


@dataclass(frozen=True, kw_only=True)
class CacheInfoConfig:
    """Cache to describe."""

    cache: str
    """Cache: its file or its folder of shards."""

    plot: str | None = None
    """PNG file to draw the teacher's confidence and entropy to, view by view; none by default."""


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
