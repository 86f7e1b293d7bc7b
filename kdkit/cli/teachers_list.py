"""kdkit teachers list."""

from __future__ import annotations

from kdkit.cli._parse import parse_nothing


def run(arguments: list[str]) -> None:
    """Prints a line for each card."""
    parse_nothing("teachers list", "The teacher cards that ship, and those in ./teachers.", arguments)
    from kdkit.teachers import list_cards

    print(f"{'name':<56} {'pixels':>6} {'params':>8} {'top-1 at pixels':>15}  licence")
    for card in list_cards():
        top1 = max(card.published_top1, key=lambda entry: entry.percent, default=None)
        shown = "" if top1 is None else f"{top1.percent:.2f} at {top1.input_size:3}"
        params = "" if card.params_m is None else f"{card.params_m:.1f} M"
        print(f"{card.name:<56} {card.input_size[-1]:>6} {params:>8} {shown:>15}  {card.license or ''}")
