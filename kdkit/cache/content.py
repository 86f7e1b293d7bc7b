"""The check that the images of a dataset are those that the teacher saw, by their files.

Opening compares what the file system or an archive tells of all files at once, and reads few of them; `cache verify
FILE DATA` reads all. Dimensions: N samples of a dataset, R rows of the cache.
"""

from __future__ import annotations

import random
from typing import Any, Protocol

import numpy as np

from kdkit.cache.format.content import content_fields, content_record
from kdkit.cache.types import Array
from kdkit.errors import CacheMismatchError, DatasetError

CONTENT_FIELD = "dataset.content"
"""The field of `allow_mismatch` for images whose files are others than those that the cache was built from."""
SAMPLED = 64
"""Files that each opening reads, drawn at random each time."""
SUSPECTS = 1024
"""Files at most that an opening reads because they changed after the build; of more, as many are drawn."""


class Content(Protocol):
    """The content of a dataset's samples; kdkit.data.sources.content.SampleContent has it."""

    @property
    def kind(self) -> str:
        """ "files" or "pixels"."""
        ...

    def read(self, row: int) -> bytes:
        """The content of one sample."""
        ...

    def stat(self) -> Any:
        """`sizes`, `checksums` and `changed` of all samples, each [N] or None."""
        ...


def check_content(dataset: Any, records: Array, kind: str | None, begun_at: float | None, origin: str) -> None:
    """Compares the files of a dataset with those of the build, as far as that is cheap.

    Compared are the size of every file (one stat each), the CRC-32 of every file where a zip's directory holds them,
    and the digests of 64 files drawn at random and of up to 1,024 files that changed after the build.

    Args:
        dataset: has `keys`, and as `content` a Content; one without is not checked.
        records: the cache's record of each sample, uint8 [N, 28].
        kind: what the cache recorded; nothing is compared with a dataset of the other kind.
        begun_at: when the cache was begun, seconds since 1970; None if that is not known.
        origin: the cache, for the message.

    Raises:
        CacheMismatchError: a file was replaced; names its sample.
    """
    content, draw = getattr(dataset, "content", None), random.Random()
    if content is None or content.kind != kind or not len(records):
        return
    fields, found = content_fields(records), content.stat()
    for expected, now, what in (
        (fields["size"].astype(np.int64), found.sizes, "size in bytes"),
        (fields["crc32"], found.checksums, "CRC-32"),
    ):
        if now is not None:
            for row in np.flatnonzero(now != expected).tolist():
                _refuse(dataset, row, f"its {what} was {expected[row]} and is {now[row]}", origin)
    if found.checksums is not None:  # of every file
        return
    suspects = [] if begun_at is None or found.changed is None else np.flatnonzero(found.changed > begun_at).tolist()
    rows = set(draw.sample(suspects, min(len(suspects), SUSPECTS)))
    rows.update(draw.sample(range(len(records)), min(len(records), SAMPLED)))
    for row in sorted(rows):
        try:
            record = content_record(content.read(row))
        except (OSError, DatasetError) as error:
            _refuse(dataset, row, f"it cannot be read: {error}", origin)
            continue
        check_record(dataset, row, record, records[row].tobytes(), origin)


def check_record(dataset: Any, row: int, found: bytes, expected: bytes, origin: str) -> None:
    """Compares the record of one sample with the cache's.

    Raises:
        CacheMismatchError: they differ; names the sample.
    """
    if found != expected:
        _refuse(dataset, row, "its content differs", origin)


def _refuse(dataset: Any, row: int, reason: str, origin: str) -> None:
    """Raises CacheMismatchError, unless the dataset skips unreadable samples and this one is unreadable."""
    if getattr(dataset, "skips_unreadable", False):
        try:
            dataset[row, 0]
        except DatasetError:
            return
    raise CacheMismatchError(
        f"{origin} was built from another image under the name {dataset.keys[row]!r} ({reason}): put the first one "
        f"back, build another cache, or pass --allow-mismatch {CONTENT_FIELD} if the pixels are the same"
    )
