"""The description of a stream in the metadata document: name, codec and fidelity, checked field by field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kdkit.cache.format.constants import (
    LOGITS,
    MAX_CLASSES,
    MAX_ROW_BYTES,
    MAX_ROWS,
    MAX_SIDES,
    fidelity_fields,
    fidelity_fields_added,
)
from kdkit.cache.format.json import Fields
from kdkit.errors import CacheCorruptError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_TAKEN = ("_crc32", "_fidelity")  # endings of a stream's side arrays


def check_stream_name(name: str, origin: str) -> None:
    """Raises CacheCorruptError for a name that could escape its group in the file, or that another member has."""
    if not _NAME.fullmatch(name) or name == "pixel" or name.endswith(_TAKEN):
        raise CacheCorruptError(
            f"{origin}: a stream is called {name[:80]!r}, expected letters, digits, '_', '-' and '.', "
            f"and neither 'pixel' nor {' nor '.join(repr(f'...{ending}') for ending in _TAKEN)}"
        )


def check_stream(name: str, described: Any, origin: str) -> None:
    """Raises CacheCorruptError for a stream whose name or description no build writes."""
    check_stream_name(name, origin)
    stream = Fields(described, f"{origin}: stream {name!r}")
    stream.integer("row_bytes", 1, MAX_ROW_BYTES)
    codec = Fields(stream.mapping("codec"), f"{origin}: the codec of stream {name!r}")
    codec.text("name")
    if name == LOGITS:
        codec.integer("num_classes", 1, MAX_CLASSES)
    else:
        codec.shape("shape", MAX_SIDES, MAX_ROW_BYTES)


def check_fidelity(fidelity: Mapping[str, Any], streams: Mapping[str, Any], origin: str) -> None:
    """Raises CacheCorruptError for the fidelity of an unknown stream, and for numbers that no build measures."""
    for name, described in fidelity.items():
        if name not in streams:
            raise CacheCorruptError(f"{origin}: fidelity has {name[:80]!r}, which is none of its streams")
        kept = Fields(described, f"{origin}: the fidelity of stream {name!r}")
        by_view = "each" in kept.names
        fields = [*fidelity_fields(name), *(field for field in fidelity_fields_added(name) if field in kept.names)]
        kept.expect_names({*fields, *(["each"] if by_view else [])})
        for field in fields:
            kept.number(field)
        if by_view:
            kept.integer("each", 1, MAX_ROWS)
