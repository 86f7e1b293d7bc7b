"""A shard's manifest entry: what makes it exist. It states the size and checksum of the shard's whole file."""

from __future__ import annotations

import json
import os
import stat
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdkit.cache.format.json import parse_json
from kdkit.cache.format.metadata import Shard
from kdkit.runtime import files

_MAX_ENTRY_BYTES = 4096


def describe_shard(shard: Shard, file: Path) -> dict[str, Any]:
    """The entry of a shard that is the whole of `file`."""
    return {"file": shard.file_name, **asdict(shard), "bytes": file.stat().st_size, "crc32": file_crc32(file)}


def write_entry(shard_path: Path, entry: dict[str, Any]) -> None:
    """Makes the shard at `shard_path` exist, durably."""
    files.write_text(_entry_path(shard_path), json.dumps(entry, sort_keys=True))


def remove_entry(shard_path: Path) -> None:
    """Makes the shard at `shard_path` missing again."""
    files.remove_file(_entry_path(shard_path))


def read_entry(shard_path: Path, shard: Shard) -> dict[str, Any] | None:
    """The shard's entry, or None; None also for a damaged entry or a link."""
    try:
        with open(os.open(_entry_path(shard_path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            entry = parse_json(file.read(_MAX_ENTRY_BYTES).decode(), str(shard))
    except (OSError, ValueError):  # a CacheError is an OSError
        return None
    expected = {"file": shard.file_name, **asdict(shard)}
    if not isinstance(entry, dict) or {name: entry.get(name) for name in expected} != expected:
        return None
    return entry if all(type(entry.get(name)) is int for name in ("bytes", "crc32")) else None


def file_size(path: Path) -> int:
    """Bytes of a regular file; -1 if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def file_crc32(path: Path) -> int:
    """CRC-32 of all of a file."""
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc


def _entry_path(shard_path: Path) -> Path:
    return shard_path.with_suffix(".json")
