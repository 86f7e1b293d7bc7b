"""Pixel hashes: which rows have them, and how they are computed. A cache keeps those that its teacher saw."""

from __future__ import annotations

import zlib

from torch import Tensor

HASHED_FIRST = 1024
"""Every row below this one is hashed."""
HASHED_EACH = 64
"""And every row that is a multiple of this."""


def is_hashed(row: int) -> bool:
    """Whether the pixels of a row are hashed."""
    return row < HASHED_FIRST or row % HASHED_EACH == 0


def pixel_crc32(image: Tensor) -> int:
    """CRC-32 of the pixels uint8 [3, H, W], channel by channel, row by row."""
    return zlib.crc32(image.contiguous().numpy().data.cast("B"))
