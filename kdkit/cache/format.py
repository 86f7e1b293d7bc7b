"""Format v1 of a teacher cache: names, limits, and the metadata document. The page for readers is cache/FORMAT.md."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py

from kdkit.errors import CacheCorruptError, CacheVersionError

FORMAT_NAME = "kdkit teacher cache"
FORMAT_VERSION = 1
METADATA_ATTRIBUTE = "kdkit"
METADATA_CRC_ATTRIBUTE = "kdkit_crc32"
SHARD_ATTRIBUTE = "kdkit_shard"
BUILD_ATTRIBUTE = "build"
"""Time and cost of the build: apart from the metadata, so that equal builds have equal metadata."""

DIGEST_NAME = "rows/key_digest"
KEYS_NAME = "rows/keys_zlib"
BLOCK_ROWS = 1000
"""Rows that one checksum covers."""

MAX_METADATA_BYTES = 16 << 20


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
    return [row for row in range(start, stop) if row < 1024 or row % 64 == 0]


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
    fidelity: Mapping[str, Mapping[str, float]]
    """Stream name -> what its codec keeps of the teacher, as kdkit.cache.fidelity measures it."""

    def shards(self) -> Iterator[Shard]:
        """The plan: every shard, view by view."""
        for view in range(self.num_views):
            for start in range(0, self.num_rows, self.shard_rows):
                yield Shard(view, start, min(start + self.shard_rows, self.num_rows))

    def row_bytes(self, stream: str) -> int:
        """Bytes of one encoded row of `stream`."""
        return int(self.streams[stream]["row_bytes"])

    def to_json(self) -> str:
        """The canonical text: sorted names, no spaces."""
        document = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, origin: str) -> CacheMetadata:
        """The document that `to_json` wrote; `origin` names the file in errors.

        Raises:
            CacheVersionError: the document's format version is not one this kdkit reads.
            CacheCorruptError: it is no such document.
        """
        try:
            document = json.loads(text)
            if document["format"] != FORMAT_NAME:
                raise ValueError(f"format is {document['format']!r}")
            version = document["version"]
            if version != FORMAT_VERSION:
                raise CacheVersionError(
                    f"{origin} has format version {version}, this kdkit reads version {FORMAT_VERSION}: "
                    "upgrade kdkit, or rebuild the cache"
                )
            return cls(**{field.name: document[field.name] for field in dataclasses.fields(cls)})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CacheCorruptError(f"{origin} holds no kdkit metadata ({error})") from None


def write_metadata(file: h5py.File, metadata: CacheMetadata) -> None:
    """Stores the document and its CRC-32 as root attributes."""
    text = metadata.to_json().encode()
    file.attrs[METADATA_ATTRIBUTE] = text.decode()
    file.attrs[METADATA_CRC_ATTRIBUTE] = zlib.crc32(text)


def read_metadata(file: h5py.File, origin: str) -> CacheMetadata:
    """The document of an open file, its checksum verified.

    Raises:
        CacheCorruptError: it is missing, too large, or not what was written.
    """
    if METADATA_ATTRIBUTE not in file.attrs or METADATA_CRC_ATTRIBUTE not in file.attrs:
        raise CacheCorruptError(
            f"{origin} is an HDF5 file, but no kdkit cache: attribute {METADATA_ATTRIBUTE!r} is missing"
        )
    text = file.attrs[METADATA_ATTRIBUTE]
    if not isinstance(text, str) or len(text) > MAX_METADATA_BYTES:
        raise CacheCorruptError(f"{origin}: the {METADATA_ATTRIBUTE!r} attribute is not a text of at most 16 MiB")
    if zlib.crc32(text.encode()) != int(file.attrs[METADATA_CRC_ATTRIBUTE]):
        raise CacheCorruptError(f"{origin}: the metadata does not match its checksum")
    return CacheMetadata.from_json(text, origin)


def write_shard_identity(file: h5py.File, metadata: CacheMetadata, shard: Shard) -> None:
    """Stores which rows of which cache a shard holds, as a root attribute."""
    file.attrs[SHARD_ATTRIBUTE] = _shard_identity(metadata, shard)


def check_shard_identity(file: h5py.File, metadata: CacheMetadata, shard: Shard, origin: str) -> None:
    """Raises CacheCorruptError unless the open file is that shard of that cache."""
    if file.attrs.get(SHARD_ATTRIBUTE) != _shard_identity(metadata, shard):
        raise CacheCorruptError(f"{origin} is not the shard with {shard} of this cache: delete it and build again")


def _shard_identity(metadata: CacheMetadata, shard: Shard) -> str:
    identity = {**dataclasses.asdict(shard), "metadata_sha256": hashlib.sha256(metadata.to_json().encode()).hexdigest()}
    return json.dumps(identity, sort_keys=True)


def block_checksums(payload: bytes | memoryview, row_bytes: int, block_rows: int = BLOCK_ROWS) -> Sequence[int]:
    """CRC-32 of each block of `block_rows` rows."""
    view = memoryview(payload).cast("B")
    step = row_bytes * block_rows
    return [zlib.crc32(view[first : first + step]) for first in range(0, len(view), step)]
