"""Configuration of the commands that describe and export a cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CacheInfoConfig:
    """Which cache is described."""

    cache: str
    """The cache: its file or its folder of shards."""

    plot: str | None = None
    """PNG to draw: the teacher's confidence and entropy, view by view; none by default."""


@dataclass(frozen=True, kw_only=True)
class CacheExportConfig:
    """Which rows of which cache are written for other tools."""

    cache: str
    """The cache: its file or its folder of shards."""

    output: str
    """A file that ends in .npz or .safetensors."""

    view: int = 0
    """Number of the view."""

    stream: str = "logits"
    """Which stream: logits, or the name of a feature that the cache holds."""

    overwrite: bool = False
    """Whether a file at the output is replaced."""
