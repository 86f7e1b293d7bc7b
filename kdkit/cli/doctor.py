"""kdkit doctor."""

from __future__ import annotations

from kdkit.cli._parse import parse_nothing


def run(arguments: list[str]) -> None:
    """Prints versions, devices, and which optional packages are missing."""
    parse_nothing("doctor", "Versions, devices, and what is missing.", arguments)
    from kdkit.runtime.doctor import doctor

    for name, value in doctor().items():
        print(f"{name:<14} {value}")
