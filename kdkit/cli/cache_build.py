"""kdkit cache build."""

from __future__ import annotations

from kdkit.building.config import CacheBuildConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Builds a cache, or resumes one that was stopped."""
    config = parse_config(CacheBuildConfig, "cache build", arguments)
    from kdkit.building.build import build_cache, describe_report
    from kdkit.building.shards import RANK_TIMEOUT
    from kdkit.cache.places import check_writable
    from kdkit.resolve import resolve_dataset, resolve_device, resolve_teacher
    from kdkit.runtime import distributed

    with distributed.joined(config.device, timeout=RANK_TIMEOUT):
        device = resolve_device(config.device)
        check_writable(config.output)  # before the teacher is loaded
        dataset = resolve_dataset(config.data, config.recipe)
        teacher = resolve_teacher(config.teacher, device)
        report = build_cache(
            teacher,
            dataset,
            config.output,
            config.build,
            device=device,
            allow_mismatch=config.allow_mismatch,
            show_progress=True,
            engine=config.engine,
            actors=config.actors,
        )
        if distributed.rank() != 0:
            return
    print(describe_report(report))
