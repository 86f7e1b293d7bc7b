"""Opening a cache, packed or in shards: nothing in the file is trusted before it is checked."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdkit.cache.codecs import RowCodec, codec_from_dict, known_codecs
from kdkit.cache.format.constants import (
    ABSENT_NAME,
    CONTENT_NAME,
    DIGEST_BYTES,
    DIGEST_NAME,
    KEYS_NAME,
    codec_array_name,
)
from kdkit.cache.format.content import CONTENT_BYTES
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.cache.hdf5.documents import read_metadata
from kdkit.cache.hdf5.open import open_hdf5
from kdkit.cache.hdf5.read import CheckedHDF5File
from kdkit.cache.hdf5.segments import open_segments
from kdkit.cache.payload import Payload, Segment
from kdkit.cache.shards.folder import INDEX_NAME, ShardFolder, packed_path, shard_folder
from kdkit.cache.shards.packed import follow_packing
from kdkit.errors import (
    CacheCorruptError,
    CacheError,
    CacheIncompleteError,
    CacheNotFoundError,
    CacheVersionError,
    KdkitError,
)

_ATTEMPTS = 5
Opened = tuple[CacheMetadata, dict[str, RowCodec], dict[tuple[int, str], Payload]]


def locate(path: Path) -> Path:
    """The packed file or parts folder that `path` refers to; the file also where `path` names shards packed since."""
    with suppress(OSError):  # a name too long to be one
        if path.is_dir() and (path / INDEX_NAME).exists():
            return path
        for place in (packed_path(path), path, shard_folder(path)):
            if place.is_dir() or (place != shard_folder(path) and place.exists()):
                return place
    raise CacheNotFoundError(f"there is no cache at {str(path)!r}: build one with `kdkit cache build`")


def open_place(path: Path, verify: bool) -> tuple[Path, Opened]:
    """The packed file or parts folder that `path` refers to, and its contents.

    A writer may pack the shards, or replace the file, while it is being opened: then it is opened again.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        before = None
        try:
            place = locate(path)
            before = _identity(place)
            return place, open_parts(place, verify) if place.is_dir() else open_packed(place, verify)
        except CacheError:
            if attempt == _ATTEMPTS or (before is not None and before == _identity(place)):
                raise
    raise AssertionError("the last attempt returns or raises")


def _identity(place: Path) -> tuple[int, ...] | None:
    """What changes if a cache at `place` is replaced or removed; None if there is nothing (any more)."""
    found = [place, place / INDEX_NAME] if place.is_dir() else [place]
    try:
        return tuple(number for each in found for number in (each.stat().st_dev, each.stat().st_ino))
    except OSError:
        return None


def open_packed(path: Path, verify: bool) -> Opened:
    """Metadata, codecs and payloads of a packed file."""
    payloads = {}
    with open_hdf5(path) as file:
        metadata = read_metadata(file)
        _check_budget(file, metadata)
        file.expect_members("", ["views", *_index_groups(file)])
        file.expect_members("views", [f"{view:04d}" for view in range(metadata.num_views)])
        for view in range(metadata.num_views):
            for stream, segment in open_segments(file, metadata, Shard(view, 0, metadata.num_rows)).items():
                payloads[view, stream] = Payload(view, stream, metadata.row_bytes(stream), [segment], verify=verify)
        codecs = _open_codecs(file, metadata)
        file.check_no_overlap()
    return metadata, codecs, payloads


def open_parts(folder: Path, verify: bool) -> Opened:
    """Metadata, codecs and payloads of a complete parts folder."""
    parts = ShardFolder.open(folder)
    metadata = parts.metadata
    if missing := parts.missing():
        raise CacheIncompleteError(
            f"the cache in {str(folder)!r} is not finished: {len(missing)} of {metadata.num_shards} shards are "
            f"missing, the first is {missing[0]}; run its build again to resume it"
        )
    segments: dict[tuple[int, str], list[Segment]] = {
        (view, stream): [] for view in range(metadata.num_views) for stream in metadata.streams
    }
    for shard in metadata.shards():
        for stream, segment in parts.open_shard(shard).items():
            segments[shard.view, stream].append(segment)
    payloads = {key: Payload(*key, metadata.row_bytes(key[1]), value, verify=verify) for key, value in segments.items()}
    return metadata, open_index(parts), payloads


def open_index(parts: ShardFolder) -> dict[str, RowCodec]:
    """Stream name -> its codec, fitted as the index of a parts folder holds it."""
    with open_hdf5(parts.index) as file:
        file.expect_members("", _index_groups(file))
        codecs = _open_codecs(file, parts.metadata)
        file.check_no_overlap()
    return codecs


@follow_packing
def verify_arrays(path: Path, metadata: CacheMetadata) -> None:
    """Compares every array but the payloads with its checksum, in a packed file or a parts folder.

    Raises:
        CacheCorruptError: one differs; names file and dataset.
    """
    parts = ShardFolder(path, metadata)
    for place in [parts.index, *map(parts.shard_path, metadata.shards())] if path.is_dir() else [path]:
        with open_hdf5(place) as file:
            for name in file.checksums():
                file.read_array(name)


def _check_budget(file: CheckedHDF5File, metadata: CacheMetadata) -> None:
    """Compares the declared size with the file's before memory is allocated for it."""
    declared = metadata.num_rows * (metadata.all_row_bytes * metadata.num_views + DIGEST_BYTES)
    if declared > file.num_bytes:
        raise CacheCorruptError(
            f"{str(file.path)!r} is cut short: its {metadata.num_rows} rows x {metadata.num_views} views need "
            f"{declared} bytes, it has {file.num_bytes}"
        )


def _index_groups(file: CheckedHDF5File) -> list[str]:
    """Root members of an index: `codecs` exists only if a codec was fitted."""
    return ["rows", *({"codecs"} if any(name.startswith("codecs/") for name in file.checksums()) else ())]


def _open_codecs(file: CheckedHDF5File, metadata: CacheMetadata) -> dict[str, RowCodec]:
    """The codecs with their fitted arrays; checks the location of the keys."""
    texts = [KEYS_NAME, ABSENT_NAME] if metadata.num_absent else [KEYS_NAME]
    records = [CONTENT_NAME] if metadata.content_kind else []
    file.expect_members("rows", [name.removeprefix("rows/") for name in (DIGEST_NAME, *texts, *records)])
    for name in records:
        file.map(name, "u1", (metadata.num_rows, CONTENT_BYTES))
    file.map(DIGEST_NAME, "u1", (metadata.num_rows, DIGEST_BYTES))
    for name in texts:
        file.map_flat(name, "u1")
    read_array = {stream: _fitted_names(file.checksums(), stream) for stream in metadata.streams}
    if any(read_array.values()):
        file.expect_members("codecs", [stream for stream, names in read_array.items() if names])
    return {stream: _open_codec(file, metadata, stream, names) for stream, names in read_array.items()}


def _fitted_names(checksums: Collection[str], stream: str) -> list[str]:
    prefix = codec_array_name(stream, "")
    return [name.removeprefix(prefix) for name in checksums if name.startswith(prefix)]


def _open_codec(file: CheckedHDF5File, metadata: CacheMetadata, stream: str, names: list[str]) -> RowCodec:
    described: dict[str, Any] = dict(metadata.streams[stream]["codec"])
    if described["name"] not in known_codecs(stream):
        raise CacheVersionError(
            f"{str(file.path)!r}: stream {stream!r} is in codec {described['name'][:80]!r}, this kdkit knows "
            f"{', '.join(known_codecs(stream))}: upgrade kdkit, "
            "register_codec your own, or rebuild the cache"
        )
    if names:
        file.expect_members(codec_array_name(stream, "")[:-1], names)
    try:
        codec = codec_from_dict(stream, described)
        codec = codec.with_arrays({name: file.read_array(codec_array_name(stream, name)) for name in names})
        needed = None if codec.needs_fit else codec.row_bytes
    except (KdkitError, TypeError, ValueError, LookupError) as error:
        raise CacheCorruptError(f"{str(file.path)!r}: the codec of stream {stream!r} is damaged ({error})") from error
    if needed != metadata.row_bytes(stream):
        raise CacheCorruptError(
            f"{str(file.path)!r}: stream {stream!r} has {metadata.row_bytes(stream)} bytes per row, its codec {needed}"
        )
    return codec
