"""Images that a cache holds under another name: copied or renamed ones, found by the content of their files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from kdkit.cache import CachedTeacher
from kdkit.cache.content import CONTENT_FIELD
from kdkit.cache.format.content import CONTENT_BYTES, content_fields, content_record
from kdkit.data import ReplayedDataset
from kdkit.errors import CacheMismatchError, DatasetError

_logger = logging.getLogger(__name__)


def warn_of_copies(first: CachedTeacher, other: CachedTeacher) -> None:
    """Warns of images of another cache that the first one holds under other names."""
    if first.metadata.content_kind != other.metadata.content_kind:
        return
    if copies := _find_copies(_records_of(first), _records_of(other)):
        _logger.warning("new images that are copies: %d, %s", len(copies), _describe(copies))


def check_not_renamed(cache: CachedTeacher, dataset: ReplayedDataset) -> None:
    """Checks that no image that the dataset lacks is there under another name.

    Of the images that the cache does not hold, those of the size of a lacking one are read.

    Raises:
        CacheMismatchError: images have other names in the dataset; names the first.
    """
    known, given = _records_of(cache), set(dataset.keys)
    gone = {key: record for key, record in known.items() if key not in given}
    new = [row for row, key in enumerate(dataset.keys) if key not in known]
    if not gone or not new or cache.metadata.content_kind != dataset.content.kind:
        return
    records = np.frombuffer(b"".join(gone.values()), dtype=np.uint8).reshape(-1, CONTENT_BYTES)
    sizes, wanted = dataset.selecting(new).content.stat().sizes, set(content_fields(records)["size"].tolist())
    found = {}
    for place, row in enumerate(new):
        if sizes is None or int(sizes[place]) in wanted:
            with suppress(DatasetError, OSError):  # an unreadable image is no copy
                found[dataset.keys[row]] = content_record(dataset.content.read(row))
    if renamed := _find_copies(found, gone):
        raise CacheMismatchError(
            f"{len(renamed)} images to remove from {str(cache.path)!r} have other names in the data "
            f"({_describe(renamed)}): rename them back, or pass --allow-mismatch {CONTENT_FIELD} to remove them"
        )


def _records_of(cache: CachedTeacher) -> dict[str, bytes]:
    """Key -> content record of each row; empty if the cache has none."""
    return dict(zip(cache.keys(), map(bytes, cache.content()), strict=False))


def _find_copies(known: Mapping[str, bytes], others: Mapping[str, bytes]) -> dict[str, str]:
    """Key of each image of `others` whose content one of `known` has -> key of that one."""
    owners = {record: key for key, record in known.items()}
    return {key: owners[record] for key, record in others.items() if record in owners}


def _describe(copies: Mapping[str, str]) -> str:
    """The first of some copies."""
    key, owner = next(iter(copies.items()))
    return f"{key!r} is {owner!r}" + (f", and {len(copies) - 1:,} more" if len(copies) > 1 else "")
