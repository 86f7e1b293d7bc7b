"""kdkit cache info."""

from __future__ import annotations

from kdkit.cache.config import CacheInfoConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Prints what a cache holds and how it was made, and draws the teacher's confidence."""
    config = parse_config(CacheInfoConfig, "cache info", arguments, {"FILE": "cache"})
    from kdkit.cache import open_cache
    from kdkit.runtime.layout import labelled_lines

    cache = open_cache(config.cache)
    print(labelled_lines(cache.summary()))
    if config.plot is not None:
        from kdkit.cache.plot import plot_cache

        print(labelled_lines({"plot": str(plot_cache(cache, config.plot))}))
