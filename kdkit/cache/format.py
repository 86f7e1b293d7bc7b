"""Format v1 of a teacher cache: names, limits, and the metadata document. The page for readers is cache/FORMAT.md."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kdkit.cache.document import Fields, check_stream_name, parse_json
from kdkit.errors import CacheCorruptError, CacheVersionError

FORMAT_NAME = "kdkit teacher cache"
FORMAT_VERSION = 1
METADATA_ATTRIBUTE = "kdkit"
SHARD_ATTRIBUTE = "kdkit_shard"
ARRAYS_ATTRIBUTE = "kdkit_arrays"
"""CRC-32 of each dataset but the payloads, which have their own."""
BUILD_ATTRIBUTE = "build"
"""Time and cost of the build: apart from the metadata, so that equal builds have equal metadata."""

DIGEST_NAME = "rows/key_digest"
KEYS_NAME = "rows/keys_zlib"
DIGEST_BYTES = 16
BLOCK_ROWS = 1000
"""Rows that one checksum covers."""
_HASHED_FIRST = 1024
_HASHED_EACH = 64

MAX_DOCUMENT_BYTES = 16 << 20
MAX_ROWS = 1 << 40
MAX_VIEWS = 10_000
MAX_SHARDS = 1 << 20
MAX_ROW_BYTES = 1 << 24
MAX_CLASSES = 1 << 20


def payload_name(view: int, stream: str) -> str:
    """Dataset of the encoded rows, uint8 [R, row_bytes]."""
    return f"views/{view:04d}/{stream}"


def checksum_name(view: int, stream: str) -> str:
    """Dataset of the CRC-32 of each block of BLOCK_ROWS rows, uint32 [ceil(R / BLOCK_ROWS)]."""
    return f"views/{view:04d}/{stream}_crc32"


def pixel_name(view: int) -> str:
    """Dataset of the pixel hashes of the rows that `hashed_rows` names, uint32."""
    return f"views/{view:04d}/pixel_crc32"


def codec_array_name(stream: str, array: str) -> str:
    """Dataset of one array that a codec learnt."""
    return f"codecs/{stream}/{array}"


def hashed_rows(start: int, stop: int) -> list[int]:
    """Rows in [start, stop) whose pixels are hashed: the first 1,024 of the cache and every 64th."""
    return [*range(start, min(stop, _HASHED_FIRST)), *_hashed_later(start, stop)]


def num_hashed_rows(start: int, stop: int) -> int:
    """How many rows `hashed_rows` names, without naming them."""
    return max(0, min(stop, _HASHED_FIRST) - start) + len(_hashed_later(start, stop))


def _hashed_later(start: int, stop: int) -> range:
    return range(-(-max(start, _HASHED_FIRST) // _HASHED_EACH) * _HASHED_EACH, stop, _HASHED_EACH)


@dataclass(frozen=True)
class Shard:
    """One sealed unit of work: rows [start, stop) of one view."""

    view: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """How many rows the shard holds."""
        return self.stop - self.start

    @property
    def file_name(self) -> str:
        """Its name in the parts folder."""
        return f"v{self.view:04d}-r{self.start:010d}.h5"

    def __str__(self) -> str:
        return f"view {self.view}, rows {self.start} to {self.stop - 1}"


@dataclass(frozen=True)
class CacheMetadata:
    """The metadata document: what a cache is, and what it was made with. Equal builds have equal documents."""

    num_rows: int
    """Samples R."""
    num_views: int
    """Views V of each sample."""
    shard_rows: int
    """Rows of a shard, but for a view's last; a multiple of BLOCK_ROWS."""
    streams: Mapping[str, Mapping[str, Any]]
    """Stream name -> {"codec": its dict form, "row_bytes": bytes a row}."""
    teacher: Mapping[str, Any]
    """The teacher's fingerprint."""
    recipe: Mapping[str, Any]
    """The replay recipe's dict form."""
    dataset: Mapping[str, Any]
    """{"keys_sha256": of the keys in row order, "class_names": list or null}."""
    fidelity: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """Stream name -> what its codec keeps of the teacher."""

    def shards(self) -> Iterator[Shard]:
        """The plan: every shard, view by view."""
        for view in range(self.num_views):
            yield from self.shards_of(view)

    def shards_of(self, view: int) -> Iterator[Shard]:
        """The plan of one view."""
        for start in range(0, self.num_rows, self.shard_rows):
            yield Shard(view, start, min(start + self.shard_rows, self.num_rows))

    @property
    def num_shards(self) -> int:
        """How many shards are planned."""
        return self.num_views * -(-self.num_rows // self.shard_rows)

    def row_bytes(self, stream: str) -> int:
        """Bytes of one encoded row of `stream`."""
        return int(self.streams[stream]["row_bytes"])

    def to_json(self) -> str:
        """The canonical text: sorted names, no spaces."""
        document = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the canonical text, by which a shard knows its cache."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str, origin: str) -> CacheMetadata:
        """The document that `to_json` wrote; `origin` names the file in errors.

        Raises:
            CacheVersionError: the document's format version is not one this kdkit reads.
            CacheCorruptError: it is no such document.
        """
        origin = f"{origin}: the metadata"
        fields = Fields(parse_json(text, origin), origin)
        if fields.text("format") != FORMAT_NAME:
            raise CacheCorruptError(f"{origin} is not that of a {FORMAT_NAME}")
        version = fields.integer("version", 1, 1 << 31)
        if version > FORMAT_VERSION:
            raise CacheVersionError(
                f"{origin} has format version {version}, this kdkit reads up to version {FORMAT_VERSION}: "
                "upgrade kdkit, or rebuild the cache"
            )
        fields.expect_names({"format", "version"} | {field.name for field in dataclasses.fields(cls)})
        metadata = cls(
            num_rows=fields.integer("num_rows", 0, MAX_ROWS),
            num_views=fields.integer("num_views", 1, MAX_VIEWS),
            shard_rows=fields.integer("shard_rows", BLOCK_ROWS, MAX_ROWS),
            **{name: fields.mapping(name) for name in ("streams", "teacher", "recipe", "dataset", "fidelity")},
        )
        metadata._check(origin)
        return metadata

    def _check(self, origin: str) -> None:
        """Refuses what no build writes and what the rest of kdkit relies on."""
        if self.shard_rows % BLOCK_ROWS:
            raise CacheCorruptError(f"{origin}: shard_rows is {self.shard_rows}, expected a multiple of {BLOCK_ROWS}")
        if self.num_shards > MAX_SHARDS:
            raise CacheCorruptError(f"{origin}: it plans more than {MAX_SHARDS} shards")
        for name in self.streams:
            check_stream_name(name, origin)
            stream = Fields(self.streams[name], f"{origin}: stream {name!r}")
            stream.integer("row_bytes", 1, MAX_ROW_BYTES)
            codec = Fields(stream.mapping("codec"), f"{origin}: the codec of stream {name!r}")
            codec.text("name")
            codec.integer("num_classes", 1, MAX_CLASSES)
        teacher, dataset = Fields(self.teacher, f"{origin}: teacher"), Fields(self.dataset, f"{origin}: dataset")
        for field in ("name", "dtype", "weights_sha256"):
            teacher.text(field)
        teacher.mapping("versions")
        dataset.text("keys_sha256")
        dataset.optional_texts("class_names")


def block_checksums(payload: bytes | memoryview, row_bytes: int, block_rows: int = BLOCK_ROWS) -> Sequence[int]:
    """CRC-32 of each block of `block_rows` rows."""
    view = memoryview(payload).cast("B")
    step = row_bytes * block_rows
    return [zlib.crc32(view[first : first + step]) for first in range(0, len(view), step)]
