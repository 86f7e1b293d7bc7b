"""The identity of a cache file: the metadata document of a whole cache, or the place of a shard in one."""

from __future__ import annotations

import dataclasses
import json

import h5py

from kdkit.cache.format.constants import METADATA_ATTRIBUTE, SHARD_ATTRIBUTE
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.cache.hdf5.layout import write_document
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
