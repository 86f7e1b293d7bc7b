"""kdkit presets show."""

from __future__ import annotations

from kdkit.cli._parse import parse_argument


def run(arguments: list[str]) -> None:
    """Prints a preset with its sources, as YAML."""
    name = parse_argument("name", "presets show", "a preset's name", arguments)
    from kdkit.presets import preset_text

    print(preset_text(name), end="")
