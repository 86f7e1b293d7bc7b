"""kdkit teachers show."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kdkit.cli._parse import parse_argument


def run(arguments: list[str]) -> None:
    """Prints one card with its sources, as YAML."""
    name = parse_argument("name", "teachers show", "a card's name, or the path of a card", arguments)
    import yaml

    from kdkit.teachers import load_card

    print(yaml.safe_dump(_plain(dataclasses.asdict(load_card(name))), sort_keys=False, allow_unicode=True), end="")


def _plain(value: object) -> object:
    """Tuples as lists, paths as text, and nothing that is not set."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item not in (None, ())}
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
