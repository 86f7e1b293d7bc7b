"""kdkit presets list."""

from __future__ import annotations

from kdkit.cli._parse import parse_nothing


def run(arguments: list[str]) -> None:
    """Prints a line for each preset."""
    parse_nothing("presets list", "The published settings that --preset begins from.", arguments)
    from kdkit.presets import list_presets, load_preset

    names = list_presets()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {load_preset(name).summary}")
