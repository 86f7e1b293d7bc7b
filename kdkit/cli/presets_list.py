"""kdkit presets list."""

from __future__ import annotations

from dataclasses import dataclass

from kdkit.cli._parse import parse_config


@dataclass(frozen=True)
class _NoOptions:
    """The command has no options."""


def run(arguments: list[str]) -> None:
    """Prints a line for each preset."""
    parse_config(_NoOptions, "presets list", arguments)
    from kdkit.presets import list_presets, load_preset
    from kdkit.runtime.layout import print_labelled

    names = list_presets()
    print_labelled({name: load_preset(name).summary for name in names}, label_width=max(map(len, names)) + 1)
