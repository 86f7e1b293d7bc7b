"""kdkit cache info."""

from __future__ import annotations

from kdkit.cli._parse import parse_argument


def run(arguments: list[str]) -> None:
    """Prints what a cache holds and what it was made with."""
    path = parse_argument("path", "cache info", "the cache", arguments)
    from kdkit.cache import open_cache

    for name, value in open_cache(path).summary().items():
        print(f"{name:<12} {value}")
