"""kdkit cache verify."""

from __future__ import annotations

from kdkit.cli._parse import parse_argument


def run(arguments: list[str]) -> None:
    """Compares every checksum."""
    path = parse_argument("path", "cache verify", "the cache", arguments)
    from kdkit.cache import open_cache

    cache = open_cache(path)
    cache.verify()
    print(f"{path}: all checksums of {cache.num_rows:,} rows x {cache.num_views} views are right")
