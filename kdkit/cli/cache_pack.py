"""kdkit cache pack."""

from __future__ import annotations

from kdkit.cache.config import CachePackConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Packs a finished folder of shards into one file."""
    config = parse_config(CachePackConfig, "cache pack", arguments, {"FILE": "cache"})
    from kdkit.cache.places import pack_cache

    packed = pack_cache(config.cache)
    print(f"{packed}: {packed.stat().st_size:,} bytes")
