"""kdkit cache extend."""

from __future__ import annotations

from kdkit.building.config import CacheExtendConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Adds views and images to a finished cache, or resumes an extension that was stopped."""
    config = parse_config(CacheExtendConfig, "cache extend", arguments, {"FILE": "cache", "DATA": "data"})
    from kdkit.building.extend import extend_cache, open_extendable
    from kdkit.building.shards import RANK_TIMEOUT
    from kdkit.cli._header import describe_built
    from kdkit.data.ranks import open_on_all_ranks
    from kdkit.dataset import open_dataset
    from kdkit.recipe import ViewRecipe
    from kdkit.resolve import as_made, load_teacher_of_cache, resolve_device, resolve_teacher
    from kdkit.runtime import distributed
    from kdkit.runtime.layout import print_labelled

    with distributed.process_group(config.device, timeout=RANK_TIMEOUT):
        device = resolve_device(config.device)
        metadata = open_extendable(config.cache).metadata
        recipe = ViewRecipe.from_dict({**metadata.recipe, "num_views": config.num_views or metadata.num_views})
        dataset = open_on_all_ranks(lambda: open_dataset(config.data, recipe=recipe, **config.columns))
        report = extend_cache(
            distributed.run_on_all_ranks(
                lambda: (
                    load_teacher_of_cache(metadata.teacher, device)
                    if config.teacher is None
                    else resolve_teacher(as_made(config.teacher, metadata.teacher), device)
                )
            ),
            dataset,
            config.cache,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            memory=config.memory,
            device=device,
            unreadable=config.unreadable,
            allow_mismatch=config.allow_mismatch,
            show_progress=True,
        )
        if distributed.rank() != 0:
            return
    print_labelled(describe_built(report))
