"""kdkit cache info."""

from __future__ import annotations

from kdkit.cache.config import CacheInfoConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Prints what a cache holds and how it was made, and draws the teacher's confidence."""
    config = parse_config(CacheInfoConfig, "cache info", arguments, {"FILE": "cache"})
    from kdkit.cache import open_cache
    from kdkit.runtime.layout import print_labelled

    cache = open_cache(config.cache)
    print_labelled(cache.summary())
    if config.plot is not None:
        from kdkit.cache.plot import plot_cache

        print_labelled({"plot": str(plot_cache(cache, config.plot))})
