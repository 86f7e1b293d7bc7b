"""kdkit teachers show."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from kdkit.cli._parse import parse_config


@dataclass(frozen=True)
class _ShowConfig:
    """Card to show."""

    name: str
    """Name or path of a teacher card; see kdkit teachers list."""


def run(arguments: list[str]) -> None:
    """Prints a card with its sources, as YAML."""
    config = parse_config(_ShowConfig, "teachers show", arguments, {"NAME": "name"})
    import yaml

    from kdkit.teachers import load_card

    card = _plain(dataclasses.asdict(load_card(config.name)))
    print(yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=76), end="")


def _plain(value: object) -> object:
    """Lists for tuples, text for paths, without empty values."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item not in (None, ())}
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
