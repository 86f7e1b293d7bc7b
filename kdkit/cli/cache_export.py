"""kdkit cache export."""

from __future__ import annotations

from kdkit.cache.config import CacheExportConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Writes one view for other tools."""
    config = parse_config(CacheExportConfig, "cache export", arguments, {"FILE": "cache"})
    from kdkit.cache.export import export_cache

    path = export_cache(config.cache, config.output, view=config.view, stream=config.stream, overwrite=config.overwrite)
    print(f"{path}: {path.stat().st_size:,} bytes")
