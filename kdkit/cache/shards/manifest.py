"""A shard's manifest entry: what makes it exist. It states the size and checksum of the shard's whole file."""

from __future__ import annotations

import json
import stat
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdkit.cache.format.constants import ARRAYS_ATTRIBUTE
from kdkit.cache.format.json import parse_json
from kdkit.cache.format.metadata import Shard
from kdkit.cache.hdf5.open import open_hdf5
from kdkit.cache.hdf5.read import CheckedHDF5File
from kdkit.errors import CacheCorruptError, CacheError
from kdkit.runtime import files
from kdkit.runtime.reading import open_regular

ARRAYS_CRC32 = "arrays_crc32"
"""Field that ties a shard to its entry without reading its rows; older entries lack it."""
_MAX_ENTRY_BYTES = 4096


def describe_shard(shard: Shard, file: Path) -> dict[str, Any]:
    """The entry of a shard that is the whole of `file`."""
    with open_hdf5(file) as opened:
        sizes = {"bytes": opened.num_bytes, "crc32": file_crc32(file), ARRAYS_CRC32: arrays_crc32(opened)}
    return {"file": shard.file_name, **asdict(shard), **sizes}


def arrays_crc32(file: CheckedHDF5File) -> int:
    """CRC-32 of the list of checksums of an open shard.

    The list holds the checksums of the arrays, and one of these those of the rows: it stands for the whole content.
    """
    return zlib.crc32(file.document(ARRAYS_ATTRIBUTE).encode())


def write_entry(shard_path: Path, entry: dict[str, Any]) -> None:
    """Makes the shard at `shard_path` exist, durably."""
    content, path = json.dumps(entry, sort_keys=True).encode(), _entry_path(shard_path)
    with files.atomic_write(path) as temporary, files.new_file(temporary, len(content)) as descriptor:
        files.write_at(descriptor, content, 0)


def remove_entry(shard_path: Path) -> None:
    """Makes the shard at `shard_path` missing again."""
    files.remove_file(_entry_path(shard_path))


def read_entry(shard_path: Path, shard: Shard) -> dict[str, Any] | None:
    """The shard's entry, or None; None also for a damaged entry or a link."""
    try:
        with open_regular(_entry_path(shard_path), error=CacheError, follow_links=False) as file:
            entry = parse_json(file.read(_MAX_ENTRY_BYTES).decode(), str(shard))
    except (CacheError, UnicodeDecodeError):
        return None
    expected = {"file": shard.file_name, **asdict(shard)}
    if not isinstance(entry, dict) or {name: entry.get(name) for name in expected} != expected:
        return None
    numbers = [entry.get("bytes"), entry.get("crc32"), entry.get(ARRAYS_CRC32, 0)]
    return entry if all(type(number) is int for number in numbers) else None


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
    with open_regular(path, error=CacheCorruptError, follow_links=False) as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc


def _entry_path(shard_path: Path) -> Path:
    return shard_path.with_suffix(".json")
