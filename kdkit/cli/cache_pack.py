"""kdkit cache pack."""

from __future__ import annotations

from kdkit.cli._parse import parse_argument


def run(arguments: list[str]) -> None:
    """Makes one file of a finished folder of shards."""
    path = parse_argument(
        "path", "cache pack", "the packed file to be, whose shards are in PATH.parts; or that folder", arguments
    )
    from kdkit.cache.places import pack_cache

    packed = pack_cache(path)
    print(f"{packed}: {packed.stat().st_size:,} bytes")
