"""The limits of FORMAT.md, checked for a plan: a build must not end in a file that no reader accepts."""

from __future__ import annotations

from collections.abc import Collection

from kdkit.cache.format.arrays import side_arrays
from kdkit.cache.format.constants import MAX_DOCUMENT_BYTES
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.errors import CacheCorruptError, ConfigError

_ENTRY_BYTES = len('"":4294967295,')  # of an array in the list of checksums, apart from its name


def check_storable(metadata: CacheMetadata, index_arrays: Collection[str]) -> None:
    """Checks that readers will accept the planned cache.

    Args:
        metadata: the metadata of all views.
        index_arrays: names of the datasets of its index, as far as they are known.

    Raises:
        ConfigError: names the field, its value and its bound.
    """
    document = metadata.to_json()
    _check_size("metadata document", len(document.encode()), "shorten the class names")
    try:
        CacheMetadata.from_json(document, "its plan")
    except CacheCorruptError as error:
        raise ConfigError(f"no cache can hold this: {error}") from error
    _check_size("list of checksums", list_bytes(metadata, index_arrays), "use fewer views or streams")


def list_bytes(metadata: CacheMetadata, index_arrays: Collection[str]) -> int:
    """Maximum size in bytes of the packed file's list of checksums."""
    view = side_arrays(metadata, Shard(0, 0, metadata.num_rows))
    of_a_view, of_index = (sum(len(name) + _ENTRY_BYTES for name in names) for names in (view, index_arrays))
    return of_index + metadata.num_views * of_a_view


def _check_size(what: str, num_bytes: int, advice: str) -> None:
    if num_bytes > MAX_DOCUMENT_BYTES:
        raise ConfigError(
            f"no cache can hold this: its {what} would have {num_bytes:,} bytes, expected up to "
            f"{MAX_DOCUMENT_BYTES:,}: {advice}"
        )
