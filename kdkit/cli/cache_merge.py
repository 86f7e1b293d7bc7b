"""kdkit cache merge."""

from __future__ import annotations

from kdkit.building.change_config import CacheMergeConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Writes one cache of the images of several."""
    config = parse_config(CacheMergeConfig, "cache merge", arguments, {"FILE...": "caches"})
    from kdkit.building.merge import merge_caches
    from kdkit.cli._header import describe_built
    from kdkit.runtime.layout import print_labelled

    print_labelled(describe_built(merge_caches(config.caches, config.output, show_progress=True)))
