"""Reading every image of a build once, in worker processes: to find the unreadable ones, or to record their content."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from kdkit.cache.format.content import CONTENT_BYTES, content_record
from kdkit.cache.types import Array
from kdkit.data import ImageSource, ReplayedDataset, translate_worker_errors
from kdkit.data.sources.content import SampleContent
from kdkit.data.worker import leave_signals_to_parent
from kdkit.errors import DatasetError, UnreadableError
from kdkit.runtime.progress import progress

_BATCH = 64


class Scanned(NamedTuple):
    """One sample, read."""

    row: int
    """Index in the dataset."""
    result: Any
    """What the reading returned."""
    reason: str | None
    """Why the sample cannot be read, or None."""


def find_unreadable(
    dataset: ReplayedDataset, rows: Sequence[int], num_workers: int, *, show_progress: bool
) -> dict[str, str]:
    """Decodes images, without showing them in a view: key -> reason of each image that cannot be read."""
    found: dict[str, str] = {}
    with progress("reading every image", len(rows), "images", enabled=show_progress) as display:
        for batch in _scan(_Decode(dataset.source), dataset.keys, rows, num_workers):
            for scanned in (scanned for scanned in batch if scanned.reason is not None):
                found[dataset.keys[scanned.row]] = str(scanned.reason)
                display.write(f"unreadable: {scanned.reason}")
            display(len(batch))
    return found


def content_records(
    dataset: ReplayedDataset, num_workers: int, *, show_progress: bool
) -> Iterator[tuple[int, bytes | UnreadableError]]:
    """Reads the file of each sample, without decoding it: its row and its record, 28 bytes, or why it is unreadable."""
    with progress("reading every file", len(dataset), "images", enabled=show_progress) as display:
        for batch in _scan(_Record(dataset.content), dataset.keys, range(len(dataset)), num_workers):
            for row, record, reason in batch:
                yield row, record if reason is None else UnreadableError(reason)
            display(len(batch))


def record_content(dataset: ReplayedDataset, num_workers: int, *, show_progress: bool) -> Array:
    """The record of each sample, uint8 [N, 28].

    Raises:
        UnreadableError: a file cannot be read; names it.
    """
    records = np.zeros((len(dataset), CONTENT_BYTES), dtype=np.uint8)
    for row, record in content_records(dataset, num_workers, show_progress=show_progress):
        if isinstance(record, UnreadableError):
            raise record
        records[row] = np.frombuffer(record, dtype=np.uint8)
    return records


@translate_worker_errors()
def _scan(
    function: Callable[[int], Any], keys: Sequence[str], rows: Sequence[int], num_workers: int
) -> Iterator[list[Scanned]]:
    """Calls `function` with each row, batch by batch, in worker processes; what it raises is the row's reason."""
    loader = DataLoader(
        _Scan(function, keys),
        batch_sampler=[list(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)],
        num_workers=min(num_workers, -(-len(rows) // _BATCH)),
        collate_fn=list,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # otherwise it would draw from the global one
    )
    yield from loader


class _Scan(Dataset[Scanned]):
    """Row -> what reading it gives."""

    def __init__(self, function: Callable[[int], Any], keys: Sequence[str]) -> None:
        self._function, self._keys = function, keys

    def __getitem__(self, row: int) -> Scanned:
        try:
            return Scanned(row, self._function(row), None)
        except Exception as error:  # a custom source may raise anything
            if isinstance(error, DatasetError):
                return Scanned(row, None, str(error))
            return Scanned(row, None, f"{self._keys[row]!r} could not be read: {type(error).__name__}: {error}")


class _Decode:
    """Decodes an image and forgets it."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def __call__(self, row: int) -> None:
        self._source[row]


class _Record:
    """The content record of a sample."""

    def __init__(self, content: SampleContent) -> None:
        self._content = content

    def __call__(self, row: int) -> bytes:
        return content_record(self._content.read(row))
