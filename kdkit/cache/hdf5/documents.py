"""The identity of a cache file: the metadata document of a whole cache, or the place of a shard in one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py

from kdkit.cache.format.constants import BUILD_ATTRIBUTE, MAX_BATCH, METADATA_ATTRIBUTE, SHARD_ATTRIBUTE
from kdkit.cache.format.json import Fields, parse_json
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.cache.hdf5.layout import write_document
from kdkit.cache.hdf5.open import open_hdf5
from kdkit.cache.hdf5.read import CheckedHDF5File
from kdkit.errors import CacheCorruptError


def write_metadata(file: h5py.File, metadata: CacheMetadata) -> None:
    """Stores the document as a root attribute."""
    write_document(file, METADATA_ATTRIBUTE, metadata.to_json())


def read_metadata(file: CheckedHDF5File) -> CacheMetadata:
    """The document of an open file.

    Raises:
        CacheCorruptError: it is missing, too large, or damaged.
        CacheVersionError: it is of a format that this kdkit does not know.
    """
    return CacheMetadata.from_json(file.document(METADATA_ATTRIBUTE), repr(str(file.path)))


@dataclasses.dataclass(frozen=True)
class BuildRecord:
    """What a cache tells of the run that built it, apart from its contents."""

    device: str = "cpu"
    """Where the teacher ran."""
    batch_size: int | None = None
    """Images per forward pass; None where it is not known."""


def read_build_record(path: Path) -> BuildRecord:
    """The record of a packed file; a folder of shards has none yet.

    Raises:
        CacheCorruptError: it is missing, too large, or of another form.
    """
    if path.is_dir():
        return BuildRecord()
    with open_hdf5(path) as file:
        origin = f"{str(path)!r}: attribute {BUILD_ATTRIBUTE!r}"
        fields = Fields(parse_json(file.text(BUILD_ATTRIBUTE), origin), origin)
    device = fields.text("device") if "device" in fields.names else BuildRecord.device
    size = fields.integer("batch_size", 1, MAX_BATCH) if "batch_size" in fields.names else None
    return BuildRecord(device, size)


def write_shard_identity(file: h5py.File, metadata: CacheMetadata, shard: Shard) -> None:
    """Stores which rows of which cache a shard holds, as a root attribute."""
    write_document(file, SHARD_ATTRIBUTE, _shard_identity(metadata, shard))


def check_shard_identity(file: CheckedHDF5File, metadata: CacheMetadata, shard: Shard) -> None:
    """Raises CacheCorruptError unless the open file is that shard of that cache."""
    if file.document(SHARD_ATTRIBUTE) != _shard_identity(metadata, shard):
        raise CacheCorruptError(
            f"{str(file.path)!r} is not the shard with {shard} of this cache: delete it and build again"
        )


def _shard_identity(metadata: CacheMetadata, shard: Shard) -> str:
    identity = {**dataclasses.asdict(shard), "cache_sha256": metadata.identity_sha256}
    return json.dumps(identity, sort_keys=True)
