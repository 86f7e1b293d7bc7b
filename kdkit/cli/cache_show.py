"""kdkit cache show."""

from __future__ import annotations

from kdkit.cli._parse import parse_config
from kdkit.report.config import CacheShowConfig


def run(arguments: list[str]) -> None:
    """Writes replayed views with the teacher's predictions, and prints where."""
    config = parse_config(CacheShowConfig, "cache show", arguments, {"FILE": "cache", "DATA": "data"})
    from kdkit.report import show_cache

    report = show_cache(config)
    views = sum(len(row.cells) for row in report.sheet.rows)
    predictions = "teacher's predictions" if config.student is None else "teacher's and the student's predictions"
    print(f"{report.output}: {views} views of {len(report.sheet.rows)} images with the {predictions}")
