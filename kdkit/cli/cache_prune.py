"""kdkit cache prune."""

from __future__ import annotations

from kdkit.building.change_config import CachePruneConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Removes the rows of images that the data lacks."""
    config = parse_config(CachePruneConfig, "cache prune", arguments, {"FILE": "cache", "DATA": "data"})
    from kdkit.building.merge import prune_cache
    from kdkit.cache import open_cache
    from kdkit.cli._header import describe_built
    from kdkit.dataset import open_dataset, records_of
    from kdkit.runtime.layout import print_labelled

    cache = open_cache(config.cache)
    dataset = open_dataset(config.data, recipe=cache.recipe, records=records_of(cache), **config.columns)
    report = prune_cache(config.cache, dataset, allow_mismatch=config.allow_mismatch, show_progress=True)
    removed = cache.num_rows - report.num_rows
    print_labelled({**describe_built(report), "removed": f"{removed:,} of {cache.num_rows:,} images"})
