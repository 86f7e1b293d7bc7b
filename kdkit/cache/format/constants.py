"""Format v1 of a teacher cache: names, limits and checksums. The page for readers is cache/FORMAT.md."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from kdkit.runtime.pixels import HASHED_EACH, HASHED_FIRST

FORMAT_NAME = "kdkit teacher cache"
FORMAT_VERSION = 1
METADATA_ATTRIBUTE = "kdkit"
SHARD_ATTRIBUTE = "kdkit_shard"
ARRAYS_ATTRIBUTE = "kdkit_arrays"
"""CRC-32 of each dataset but the payloads, which have their own."""
BUILD_ATTRIBUTE = "build"
"""Time and cost of the build, kept apart from the metadata, so that equal builds have equal metadata."""
MAX_BATCH = 1 << 16  # images per forward pass that a build record may state

LOGITS = "logits"
"""The stream of the teacher's logits; every other stream holds features, and has the name of the teacher's tap."""

RECORDS = "view_records"
"""The stream of recorded view parameters, in codec record: no output of the teacher, but what its views looked like."""

DIGEST_NAME = "rows/key_digest"
KEYS_NAME = "rows/keys_zlib"
ABSENT_NAME = "rows/absent_zlib"
"""Keys of the samples that the build left out, because they could not be read."""
CONTENT_NAME = "rows/content"
"""Size, CRC-32 and digest of each sample's file, see format/content.py."""
DIGEST_BYTES = 16
BLOCK_ROWS = 1000
"""Rows that one checksum covers."""
TEMPERATURES = (1, 2, 4)
"""Temperatures at which the divergence of a row of logits is measured."""
ABOUT_MEAN, COSINE = "relative_error_about_mean", "cosine_mean"
"""Fields of the fidelity of features that rows tell together, of view 0."""

MAX_DOCUMENT_BYTES = 16 << 20
MAX_ROWS = 1 << 40
MAX_VIEWS = 10_000
MAX_SHARDS = 1 << 20
MAX_ROW_BYTES = 1 << 24
MAX_CLASSES = 1 << 20
MAX_SIDES = 3
"""Maximum number of dimensions of a row of features: [D], [N, D] or [D, H, W]."""


def payload_name(view: int, stream: str) -> str:
    """Dataset of the encoded rows, uint8 [R, row_bytes]."""
    return f"views/{view:04d}/{stream}"


def checksum_name(view: int, stream: str) -> str:
    """Dataset of the CRC-32 of each block of BLOCK_ROWS rows, uint32 [ceil(R / BLOCK_ROWS)]."""
    return f"views/{view:04d}/{stream}_crc32"


def pixel_name(view: int) -> str:
    """Dataset of the pixel hashes of the rows that `hashed_rows` names, uint32."""
    return f"views/{view:04d}/pixel_crc32"


def fidelity_name(view: int, stream: str) -> str:
    """Dataset of the fidelity measures of each measured row, float32 [rows, columns]."""
    return f"views/{view:04d}/{stream}_fidelity"


def fidelity_columns(stream: str) -> int:
    """The measures: for logits the KL at each temperature and the top-1 agreement; for features the relative error."""
    return len(TEMPERATURES) + 1 if stream == LOGITS else 1


def fidelity_fields(stream: str) -> list[str]:
    """Fields of a stream's fidelity in view 0, in the metadata document."""
    if stream != LOGITS:
        return ["rows", "relative_error_mean", "relative_error_max"]
    return ["rows", "top1_agreement", *(f"kl_{what}_t{t}" for what in ("mean", "p99") for t in TEMPERATURES)]


def fidelity_fields_added(stream: str) -> list[str]:
    """Further fields, which older caches lack, and those of which not all rows were measured together."""
    return [] if stream == LOGITS else [ABOUT_MEAN, COSINE]


def codec_array_name(stream: str, array: str) -> str:
    """Dataset of one array of a fitted codec."""
    return f"codecs/{stream}/{array}"


def hashed_rows(start: int, stop: int) -> list[int]:
    """Rows in [start, stop) whose pixels are hashed: the first 1,024 of the cache and every 64th."""
    return [*range(start, min(stop, HASHED_FIRST)), *_hashed_later(start, stop)]


def num_hashed_rows(start: int, stop: int) -> int:
    """Number of rows in `hashed_rows`, without listing them."""
    return max(0, min(stop, HASHED_FIRST) - start) + len(_hashed_later(start, stop))


def _hashed_later(start: int, stop: int) -> range:
    return range(-(-max(start, HASHED_FIRST) // HASHED_EACH) * HASHED_EACH, stop, HASHED_EACH)


def block_checksums(payload: bytes | memoryview, row_bytes: int, block_rows: int = BLOCK_ROWS) -> Sequence[int]:
    """CRC-32 of each block of `block_rows` rows."""
    view = memoryview(payload).cast("B")
    step = row_bytes * block_rows
    return [zlib.crc32(view[first : first + step]) for first in range(0, len(view), step)]
