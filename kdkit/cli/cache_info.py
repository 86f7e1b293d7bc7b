"""kdkit cache info."""

from __future__ import annotations

import json
import sys

from kdkit.cache.config import CacheInfoConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Prints what a cache holds, and draws the teacher's confidence."""
    config = parse_config(CacheInfoConfig, "cache info", arguments, {"FILE": "cache"})
    from kdkit.cache import open_cache
    from kdkit.cache.overview import describe, overview
    from kdkit.runtime.layout import print_labelled

    cache = open_cache(config.cache)
    if config.json:
        print(json.dumps(describe(cache), indent=2))
    else:
        print_labelled(cache.summary() if config.all else overview(cache))
    if config.plot is not None:
        from kdkit.cache.plot import plot_cache

        plot = str(plot_cache(cache, config.plot))
        print_labelled({"plot": plot}, file=sys.stderr if config.json else None)
