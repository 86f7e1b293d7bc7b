"""kdkit cache build."""

from __future__ import annotations

from kdkit.cli._parse import parse_config
from kdkit.config import CacheBuildConfig


def run(arguments: list[str]) -> None:
    """Builds a cache, or goes on with one that was stopped."""
    config = parse_config(CacheBuildConfig, "cache build", arguments)
    from kdkit.engine import ranks
    from kdkit.engine.build import build_cache, describe_report
    from kdkit.engine.fill import PATIENCE
    from kdkit.engine.resolve import resolve_dataset, resolve_device, resolve_teacher
    from kdkit.engine.resume import check_writable

    with ranks.joined(config.device, timeout=PATIENCE):
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
        )
        if ranks.rank() != 0:
            return
    print(describe_report(report))
