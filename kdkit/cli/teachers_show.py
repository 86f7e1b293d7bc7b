"""kdkit teachers show."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdkit.cli._parse import parse_config
from kdkit.errors import ConfigError

if TYPE_CHECKING:
    from kdkit.teachers import TeacherCard


@dataclass(frozen=True)
class _ShowConfig:
    """Card to show."""

    name: str
    """Name or path of a teacher card; see kdkit teachers list."""

    all: bool = False
    """Print the whole card as YAML, with its sources; a pipe or a file gets this in any case."""

    json: bool = False
    """Print the whole card as one JSON object."""

    def __post_init__(self) -> None:
        if self.json and self.all:
            raise ConfigError("all and json exclude each other: JSON holds the whole card")


def run(arguments: list[str]) -> None:
    """Prints a card: in a terminal its main facts, else the whole of it as YAML."""
    config = parse_config(_ShowConfig, "teachers show", arguments, {"NAME": "name"})
    import yaml

    from kdkit.runtime.layout import print_labelled
    from kdkit.teachers import load_card

    card = load_card(config.name)
    if config.json:
        print(json.dumps(_plain(dataclasses.asdict(card)), indent=2))
    elif config.all or not sys.stdout.isatty():
        whole = _plain(dataclasses.asdict(card))
        print(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=76), end="")
    else:
        print_labelled(_main_facts(card))


def _main_facts(card: TeacherCard) -> dict[str, str]:
    """Label -> text, of the facts that are known."""
    channels, height, width = card.input_size
    weights = card.weights
    facts = {
        "name": card.name,
        "model": card.model,
        "input": f"{height} x {width}, {channels} channels",
        "crop": f"{card.crop_mode}, {card.crop_pct:g} of the resized side, {card.interpolation}",
        "mean": " ".join(f"{value:g}" for value in card.mean),
        "std": " ".join(f"{value:g}" for value in card.std),
        "classes": f"{card.num_classes:,}",
        "parameters": f"{card.params_m:g} M" if card.params_m else None,
        "top-1": ", ".join(f"{top1.percent:g} % at {top1.input_size}" for top1 in card.published_top1),
        "trained on": ", ".join(card.training_data),
        "weights": weights.checkpoint or weights.hub_id or weights.pypi,
        "licence": card.license,
        "sources": f"{len(card.sources)}; --all prints them" if card.sources else "none",
        "card": None if card.path is None else str(card.path),
    }
    return {label: text for label, text in facts.items() if text}


def _plain(value: object) -> object:
    """Lists for tuples, text for paths, without empty values."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item not in (None, ())}
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
