"""kdkit cache info."""

from __future__ import annotations

from kdkit.cache.config import CacheInfoConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Prints what a cache holds and what it was made with, and draws what the teacher said."""
    config = parse_config(CacheInfoConfig, "cache info", arguments)
    from kdkit.cache import open_cache

    cache = open_cache(config.cache)
    for name, value in cache.summary().items():
        print(f"{name:<12} {value}")
    if config.plot is not None:
        from kdkit.cache.plot import plot_cache

        print(f"{'plot':<12} {plot_cache(cache, config.plot)}")
