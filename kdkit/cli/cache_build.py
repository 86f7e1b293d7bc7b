"""kdkit cache build."""

from __future__ import annotations

from datetime import timedelta

from kdkit.cli._parse import parse_config
from kdkit.config import CacheBuildConfig

_PATIENCE = timedelta(days=1)  # ranks meet at the end alone, which a slow one may reach hours after the others


def run(arguments: list[str]) -> None:
    """Builds a cache, or goes on with one that was stopped."""
    config = parse_config(CacheBuildConfig, "cache build", arguments)
    from kdkit.engine import ranks
    from kdkit.engine.build import build_cache, check_writable
    from kdkit.engine.resolve import resolve_dataset, resolve_device, resolve_teacher

    with ranks.joined(config.device, timeout=_PATIENCE):
        device = resolve_device(config.device)
        check_writable(config.output)  # before the teacher is loaded
        dataset = resolve_dataset(config.data, config.recipe)
        teacher = resolve_teacher(config.teacher, device)
        report = build_cache(teacher, dataset, config.output, config.build, device=device, show_progress=True)
        if ranks.rank() != 0:
            return
    print(
        f"{report.path}: {report.num_rows:,} images x {report.num_views} views, {report.num_bytes:,} bytes; "
        f"{report.images_built:,} asked in {report.seconds:.1f} s"
    )
