"""kdkit cache extend."""

from __future__ import annotations

from kdkit.building.config import CacheExtendConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Adds views to a finished cache, or resumes an extension that was stopped."""
    config = parse_config(CacheExtendConfig, "cache extend", arguments)
    from kdkit.building.build import describe_report
    from kdkit.building.extend import extend_cache
    from kdkit.building.shards import RANK_TIMEOUT
    from kdkit.cache import open_cache
    from kdkit.recipe import ViewRecipe
    from kdkit.resolve import resolve_dataset, resolve_device, resolve_teacher
    from kdkit.runtime import distributed

    with distributed.joined(config.device, timeout=RANK_TIMEOUT):
        device = resolve_device(config.device)
        recipe = open_cache(config.cache).metadata.recipe
        dataset = resolve_dataset(config.data, ViewRecipe.from_dict({**recipe, "num_views": config.num_views}))
        report = extend_cache(
            resolve_teacher(config.teacher, device),
            dataset,
            config.cache,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            device=device,
            allow_mismatch=config.allow_mismatch,
            show_progress=True,
        )
        if distributed.rank() != 0:
            return
    print(describe_report(report))
