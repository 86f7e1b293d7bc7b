"""kdkit demo."""

from __future__ import annotations

from kdkit.cli._parse import parse_config
from kdkit.demo.config import DemoConfig


def run(arguments: list[str]) -> None:
    """Runs the demonstration and prints its table."""
    config = parse_config(DemoConfig, "demo", arguments)
    from kdkit.demo.report import print_table
    from kdkit.demo.run import demo

    print_table(demo(config, show_progress=True))
