"""kdkit cache recode."""

from __future__ import annotations

from kdkit.building.change_config import CacheRecodeConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Writes a cache again in another codec, or with fewer views, and prints its fidelity."""
    config = parse_config(CacheRecodeConfig, "cache recode", arguments, {"FILE": "cache"})
    from kdkit.building.recode import recode_cache
    from kdkit.cli._header import describe_built
    from kdkit.runtime.layout import print_labelled

    report = recode_cache(
        config.cache,
        config.place,
        codec=config.codec,
        row_bytes=config.row_bytes,
        codec_options=config.codec_options,
        feature_codec=config.feature_codec,
        feature_bytes=config.feature_bytes,
        num_views=config.num_views,
        show_progress=True,
    )
    print_labelled(describe_built(report))
