"""kdkit teachers list."""

from __future__ import annotations

from dataclasses import dataclass

from kdkit.cli._parse import parse_config
from kdkit.errors import printable


@dataclass(frozen=True)
class _NoOptions:
    """The command has no options."""


def run(arguments: list[str]) -> None:
    """Prints a line for each card."""
    parse_config(_NoOptions, "teachers list", arguments)
    from kdkit.teachers import list_cards

    print(f"{'name':<46} {'params':>7} {'top-1':>12}  licence")
    for card in list_cards():
        top1 = max(card.published_top1, key=lambda entry: entry.percent, default=None)
        shown = "" if top1 is None else f"{top1.percent:.2f} at {top1.input_size:3}"
        params = "" if card.params_m is None else f"{card.params_m:.1f} M"
        print(printable(f"{card.name:<46} {params:>7} {shown:>12}  {card.license or ''}"))
