"""kdkit cache verify."""

from __future__ import annotations

from kdkit.building.config import CacheVerifyConfig
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Compares every checksum, and rows with what the teacher says now."""
    config = parse_config(CacheVerifyConfig, "cache verify", arguments)
    from kdkit.building.verify import verify_cache
    from kdkit.cache import open_cache
    from kdkit.resolve import resolve_dataset, resolve_device, resolve_teacher

    teacher = dataset = None
    if config.teacher is not None and config.data is not None:
        cache = open_cache(config.cache)
        dataset = resolve_dataset(config.data, cache.recipe, cache)
        teacher = resolve_teacher(config.teacher, resolve_device(config.device))
    report = verify_cache(
        config.cache,
        teacher,
        dataset,
        num_rows=config.rows,
        device=config.device,
        allow_mismatch=config.allow_mismatch,
    )
    print(f"{config.cache}: all checksums of {report.num_rows:,} rows x {report.num_views} views are right")
    for stream, difference in report.differences.items():
        print(
            f"{stream}: {report.rows_asked} random rows are what the teacher says now, within {difference:.2g} "
            f"{'nats' if stream == 'logits' else 'of their size'} on average"
        )
    for view, divergence in report.divergence.items():
        print(f"view {view}: mean KL(teacher || cache) {divergence:.2g} nats")
