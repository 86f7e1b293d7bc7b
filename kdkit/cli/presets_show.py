"""kdkit presets show."""

from __future__ import annotations

from dataclasses import dataclass

from kdkit.cli._parse import parse_config


@dataclass(frozen=True)
class _ShowConfig:
    """Preset to show."""

    name: str
    """Name of a preset; see kdkit presets list."""


def run(arguments: list[str]) -> None:
    """Prints a preset with its sources, as YAML."""
    config = parse_config(_ShowConfig, "presets show", arguments, {"NAME": "name"})
    from kdkit.presets import preset_text

    print(preset_text(config.name), end="")
