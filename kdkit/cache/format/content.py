"""The content records of a cache: size, CRC-32 and digest of each sample's file, 28 bytes a row.

Dimensions: R rows of the cache.
"""

from __future__ import annotations

import hashlib
import zlib

import numpy as np

from kdkit.cache.types import Array
from kdkit.errors import ConfigError

CONTENT_DTYPE = np.dtype([("size", "<u8"), ("crc32", "<u4"), ("digest", "V16")])
"""The fields of a record, without padding."""
CONTENT_BYTES = CONTENT_DTYPE.itemsize
CONTENT_KINDS = ("files", "pixels")
"""What was recorded: files byte for byte, or the decoded pixels of images that are in no file."""


def check_records(records: object, kind: str, num_rows: int) -> None:
    """Checks the content records of a cache to write.

    Raises:
        ConfigError: they are not uint8 [R, 28] or None, or of an unknown kind.
    """
    shape = (num_rows, CONTENT_BYTES)
    if records is not None and not (
        isinstance(records, np.ndarray) and records.dtype == np.uint8 and records.shape == shape
    ):
        found = f"{records.dtype} {list(records.shape)}" if isinstance(records, np.ndarray) else repr(records)[:80]
        raise ConfigError(f"content must be uint8 {list(shape)}, one record per key, got {found}")
    if kind not in CONTENT_KINDS:
        raise ConfigError(f"content_kind must be {' or '.join(CONTENT_KINDS)}, got {kind!r}")


def content_record(content: bytes) -> bytes:
    """The record of one sample's content, 28 bytes."""
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return np.array((len(content), zlib.crc32(content), digest), dtype=CONTENT_DTYPE).tobytes()


def content_fields(records: Array) -> Array:
    """Records uint8 [R, 28] as an array [R] of CONTENT_DTYPE."""
    return np.ascontiguousarray(records).view(CONTENT_DTYPE).reshape(-1)
