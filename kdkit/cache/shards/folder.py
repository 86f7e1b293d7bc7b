"""The parts folder: the shards of a cache that is being built, and the manifest of the sealed ones.

    t.h5.parts/
      index.h5                    metadata, keys, fitted codecs: written once, first
      v0000-r0000000000.h5        a shard: rows from 0 of view 0
      v0000-r0000000000.json      its manifest entry, written after it; a shard without an entry does not exist

A shard's entry states the shard's size and checksum, so a file that a power loss cut or emptied is never trusted.
Ranges belong to the plan, not to processes: the run that builds the rest may have another batch or world size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from kdkit.cache.format.arrays import check_side_arrays
from kdkit.cache.format.constants import block_checksums, checksum_name, fidelity_name, payload_name, pixel_name
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.cache.hdf5.documents import check_shard_identity, read_metadata, write_metadata, write_shard_identity
from kdkit.cache.hdf5.open import open_hdf5
from kdkit.cache.hdf5.segments import open_segments
from kdkit.cache.hdf5.write import Region, write_hdf5
from kdkit.cache.payload import Segment
from kdkit.cache.shards.manifest import (
    ARRAYS_CRC32,
    arrays_crc32,
    describe_shard,
    file_crc32,
    file_size,
    read_entry,
    remove_entry,
    write_entry,
)
from kdkit.cache.types import Array
from kdkit.cache.write_errors import cache_write_errors
from kdkit.errors import CacheCorruptError, CacheError, CacheNotFoundError
from kdkit.runtime import files

INDEX_NAME = "index.h5"
_SUFFIX = ".parts"


def shard_folder(path: Path) -> Path:
    """Where the shards of the cache at `path` are kept until they are packed."""
    return path.with_name(path.name + _SUFFIX)


def packed_path(path: Path) -> Path:
    """The packed file of the cache whose packed file or parts folder is, or was, at `path`."""
    is_folder_name = path.name.endswith(_SUFFIX) and path.name != _SUFFIX
    was_packed = is_folder_name and not path.exists() and packed_file(path).is_file()
    return packed_file(path) if is_folder_name and (path.is_dir() or was_packed) else path


def packed_file(folder: Path) -> Path:
    """The packed file of the cache whose shards are, or were, in `folder`."""
    return folder.with_name(folder.name.removesuffix(_SUFFIX))


@dataclass(frozen=True)
class ShardFolder:
    """A parts folder whose index has been written.

    Attributes:
        folder: where it is.
        metadata: contents and origin of the cache, and with it the plan of its shards.
    """

    folder: Path
    metadata: CacheMetadata

    @classmethod
    @cache_write_errors()
    def create(cls, folder: Path, metadata: CacheMetadata, arrays: Mapping[str, Array]) -> ShardFolder:
        """Starts a parts folder; `arrays` are the datasets of its index.

        Raises:
            CacheWriteError: the folder cannot be written.
        """
        files.make_folder(folder)
        with files.atomic_write(folder / INDEX_NAME) as temporary:
            write_hdf5(temporary, set_attributes=lambda file: write_metadata(file, metadata), arrays=arrays, regions={})
        return cls(folder, metadata)

    @classmethod
    def open(cls, folder: Path) -> ShardFolder:
        """The parts folder that `create` started.

        Raises:
            CacheNotFoundError: there is none.
            CacheCorruptError: its index is damaged.
        """
        try:
            with open_hdf5(folder / INDEX_NAME, follow_links=False) as file:
                return cls(folder, read_metadata(file))
        except CacheNotFoundError:
            raise CacheNotFoundError(f"there is no cache in {str(folder)!r}: it has no {INDEX_NAME}") from None

    @staticmethod
    def remove_orphan_shards(folder: Path) -> None:
        """Removes the shards of a folder without an index: nothing identifies their cache any more."""
        for file in folder.glob("v*"):
            files.remove_file(file)

    @property
    def index(self) -> Path:
        """The file of metadata, keys and fitted arrays."""
        return self.folder / INDEX_NAME

    def shard_path(self, shard: Shard) -> Path:
        """Where the shard is, or will be."""
        return self.folder / shard.file_name

    def is_sealed(self, shard: Shard) -> bool:
        """Whether the manifest names the shard, and its file has the size it was sealed with and is not a link."""
        path = self.shard_path(shard)
        entry = read_entry(path, shard)
        return entry is not None and file_size(path) == entry["bytes"]

    def missing(self, first_view: int = 0) -> list[Shard]:
        """The shards of the plan, from a view on, that are not sealed, in order."""
        return [shard for shard in self.metadata.shards(first_view) if not self.is_sealed(shard)]

    @cache_write_errors()
    def seal(
        self,
        shard: Shard,
        payloads: Mapping[str, Array],
        pixel_crc32: Array,
        fidelity: Mapping[str, Array] = MappingProxyType({}),
    ) -> None:
        """Writes the shard, then its manifest entry, both durably; a sealed shard can only be written again as it is.

        Two processes that seal one shard at the same moment may leave the file of one and the entry of the other, which
        `verify_all` finds.

        Args:
            shard: the shard's view and rows.
            payloads: stream -> encoded rows, uint8 [rows, row_bytes].
            pixel_crc32: hashes of the pixels of `hashed_rows(start, stop)`, uint32.
            fidelity: stream -> the measures of its `measured_rows(stream, start, stop)`, [rows, measures], if
                the metadata has views measured.
        """
        arrays: dict[str, Array] = {pixel_name(shard.view): pixel_crc32.astype("<u4")}
        arrays |= {fidelity_name(shard.view, stream): found.astype("<f4") for stream, found in fidelity.items()}
        regions: dict[str, Region] = {}
        for stream, payload in payloads.items():
            expected = (shard.num_rows, self.metadata.row_bytes(stream))
            if payload.shape != expected or payload.dtype != np.uint8:
                raise CacheError(
                    f"stream {stream!r} of {shard}: got {payload.dtype} {payload.shape}, expected uint8 {expected}"
                )
            checksums = block_checksums(payload.data, payload.shape[1])
            arrays[checksum_name(shard.view, stream)] = np.asarray(checksums, dtype="<u4")
            regions[payload_name(shard.view, stream)] = Region(payload.shape, payload.dtype, [payload])
        check_side_arrays(arrays, self.metadata, shard)
        path = self.shard_path(shard)
        with files.atomic_write(path) as temporary:
            write_hdf5(
                temporary,
                set_attributes=lambda file: write_shard_identity(file, self.metadata, shard),
                arrays=arrays,
                regions=regions,
            )
            entry = describe_shard(shard, temporary)
            sealed = read_entry(path, shard) if self.is_sealed(shard) else None
            if sealed is not None and {**entry, **sealed} != entry:
                raise CacheError(f"{str(path)!r} ({shard}) is sealed already, with other contents: it is kept as it is")
        write_entry(path, entry)

    def open_shard(self, shard: Shard) -> dict[str, Segment]:
        """Stream -> its rows in the shard, mapped.

        Raises:
            CacheCorruptError: the file is not that shard of this cache, or is damaged.
        """
        path = self.shard_path(shard)
        entry = read_entry(path, shard)
        if entry is None:
            raise CacheCorruptError(f"{str(path)!r} ({shard}) is not sealed")
        with open_hdf5(path, follow_links=False) as file:
            check_shard_identity(file, self.metadata, shard)
            is_tied = ARRAYS_CRC32 in entry
            if is_tied and entry[ARRAYS_CRC32] != arrays_crc32(file):
                raise CacheCorruptError(
                    f"{str(path)!r} ({shard}) is not the file that was sealed here: delete it and build again"
                )
            file.expect_members("", ["views"])
            file.expect_members("views", [f"{shard.view:04d}"])
            segments = open_segments(file, self.metadata, shard, None if is_tied else entry["crc32"])
            file.check_no_overlap()
        return segments

    def verify(self, shard: Shard) -> None:
        """Reads the whole shard against its manifest entry.

        Raises:
            CacheCorruptError: it is not sealed, or its bytes have changed since.
        """
        if not self._has_sealed_bytes(shard):
            raise CacheCorruptError(
                f"{str(self.shard_path(shard))!r} ({shard}) does not match its checksum: delete it and build again"
            )

    def verify_all(self, first_view: int = 0) -> None:
        """Verifies all shards, from a view on. Those that have changed are missing from then on, to be written again.

        Raises:
            CacheCorruptError: a shard is not sealed, or its bytes have changed since.
        """
        changed = [shard for shard in self.metadata.shards(first_view) if not self._has_sealed_bytes(shard)]
        for shard in changed:
            remove_entry(self.shard_path(shard))
        if changed:
            raise CacheCorruptError(
                f"{str(self.folder)!r}: {len(changed)} shards do not match their checksums, first {changed[0]}: run "
                "again, which writes them anew"
            )

    def _has_sealed_bytes(self, shard: Shard) -> bool:
        """Whether the checksum of a sealed shard's file is that of its entry."""
        path = self.shard_path(shard)
        entry = read_entry(path, shard)
        if entry is None or not self.is_sealed(shard):
            raise CacheCorruptError(f"{str(path)!r} ({shard}) is not sealed")
        return bool(file_crc32(path) == entry["crc32"])
