"""Convert a foreign cache to a kdkit cache: its files are read once, in ranges of rows, and written shard by shard.

Dimensions: V views, R rows of a range, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdkit._version import __version__
from kdkit.cache import CacheSpec, CacheWriter, Codec, create_codec
from kdkit.cache.codecs import RowCodec, multi_label_codec
from kdkit.cache.codecs.record import RecordCodec
from kdkit.cache.fidelity import measure_rows, summarise_rows
from kdkit.cache.format.constants import BLOCK_ROWS, LOGITS, RECORDS
from kdkit.cache.format.metadata import Shard
from kdkit.data.loader import translate_worker_errors
from kdkit.data.sources.base import ImageSource
from kdkit.data.sources.left_out import skipped_of
from kdkit.data.sources.multi_label import num_labels_of
from kdkit.data.worker import leave_signals_to_parent
from kdkit.errors import ConfigError, DatasetError
from kdkit.importers._classes import Classes, match_classes
from kdkit.importers._foreign import Array, ForeignCache, ForeignViews, to_logits
from kdkit.runtime.progress import progress

_RANGE_BYTES = 256 << 20
"""Memory for the labels and records of one range of rows."""
_SHARD_ROWS = 20_000
_READ_ROWS = 64
"""Rows that a worker reads at a time."""
_SAMPLED_ROWS = 512
"""Images whose labels a codec is fitted to or measured on."""


@dataclass(frozen=True)
class ImportReport:
    """What an import left."""

    path: Path
    """The packed cache."""
    num_rows: int
    """Images in it."""
    num_views: int
    """Views of each."""
    views: str
    """What is done to an image."""
    num_bytes: int
    """Bytes of the file."""
    images_read: int
    """Images whose files this run read; fewer than `num_rows` after a resume."""
    seconds: float
    """Wall time of this run."""

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.num_rows:,} images x {self.num_views} views ({self.views}), {self.num_bytes:,} bytes; "
            f"{self.images_read:,} images imported in {self.seconds:.1f} s"
        )


def write_import(
    foreign: ForeignCache,
    data: ImageSource,
    path: str | Path,
    *,
    codec: Codec | str | None = None,
    num_workers: int = 0,
    show_progress: bool = False,
) -> ImportReport:
    """Writes a kdkit cache of a foreign one; resumes where an import was stopped.

    Args:
        foreign: what is imported, matched with the keys of `data`.
        data: the images.
        path: the cache to write.
        codec: of the labels, a name or a codec; None: topk for sparse labels, float16 for dense ones.
        num_workers: processes that read; 0 reads in this one.
        show_progress: whether progress is shown on standard error.

    Raises:
        DatasetError: a file is damaged or not of its image.
        ClassMismatchError, ConfigError: the data has other classes, or several labels per image but no logits.
        CacheMismatchError: another cache exists at `path`.
        CacheError: the cache cannot be written.
    """
    begun = time.monotonic()
    classes = match_classes(foreign, data.class_names)
    columns = classes.columns
    spec = _plan(foreign, data, codec, classes)
    with CacheWriter.create(path, spec) as writer:
        by_range: dict[tuple[int, int], list[Shard]] = {}
        for shard in writer.missing():
            by_range.setdefault((shard.start, shard.stop), []).append(shard)
        images = sum(stop - start for start, stop in by_range)
        with progress(f"importing {foreign.name}", images, "images", enabled=show_progress) as advance:
            files = _read_files(foreign, list(by_range), num_workers)
            for (start, stop), shards in by_range.items():
                labels = _Range(stop - start)
                while not labels.is_full:
                    views = next(files)
                    labels.add(views)
                    advance(len(views))
                for shard in shards:
                    writer.write(shard, labels.outputs(shard.view, foreign.num_classes, columns))
        written = writer.finish(record={"seconds": round(time.monotonic() - begun, 3), "images": images})
    seconds = time.monotonic() - begun
    recipe = foreign.recipe
    return ImportReport(
        written, len(data.keys), recipe.num_views, recipe.describe_steps(), written.stat().st_size, images, seconds
    )


class _Range:
    """The views of the images of one range of rows, R of them."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._arrays: ForeignViews | None = None
        self._filled = 0

    @property
    def is_full(self) -> bool:
        """Whether all rows are there."""
        return self._filled == self._num_rows

    def add(self, images: Sequence[ForeignViews]) -> None:
        """Takes the next images."""
        if self._arrays is None:
            self._arrays = ForeignViews(*map(self._empty, _parts(images[0])))
        for views in images:
            for whole, part in zip(_parts(self._arrays), _parts(views), strict=True):
                if whole is not None and part is not None:
                    whole[self._filled] = part
            self._filled += 1

    def outputs(self, view: int, num_classes: int, columns: Tensor | None) -> dict[str, Tensor]:
        """Stream -> its rows of one view, as a cache's writer takes them."""
        assert self._arrays is not None
        parts: list[Any] = [None if part is None else part[:, view] for part in _parts(self._arrays)]
        values, ids, records = parts
        logits = to_logits(values, ids, num_classes)
        outputs = {LOGITS: logits if columns is None else logits[:, columns]}
        if records is not None:
            raw = np.ascontiguousarray(records).view(np.uint8).reshape(len(records), -1)
            outputs[RECORDS] = torch.from_numpy(raw)
        return outputs

    def _empty(self, part: Array | None) -> Any:
        return None if part is None else np.empty((self._num_rows, *part.shape), part.dtype)


def _parts(views: ForeignViews) -> tuple[Any, Any, Any]:
    return views.values, views.ids, views.records


def _plan(foreign: ForeignCache, data: ImageSource, codec: Codec | str | None, classes: Classes) -> CacheSpec:
    """What the cache will hold. Its labels are measured, and their codec fitted, on images spread over the data."""
    num_views, num_rows, columns = foreign.recipe.num_views, len(data.keys), classes.columns
    num_classes = foreign.num_classes if columns is None else len(columns)
    each = -(-num_rows // _SAMPLED_ROWS)
    sample = _Range(len(range(0, num_rows, each)))
    sample.add([foreign.read(row) for row in range(0, num_rows, each)])
    first = sample.outputs(0, foreign.num_classes, columns)
    fitted = _choose_codec(foreign, codec, num_classes, is_multi_label=num_labels_of(data) is not None)
    if fitted.needs_fit:
        views = range(1, min(num_views, 8)) or [0]
        rows = [sample.outputs(view, foreign.num_classes, columns)[LOGITS] for view in views]
        fitted = fitted.fit(torch.cat(rows))
    codecs: dict[str, RowCodec] = {LOGITS: fitted}
    row_bytes = 12 * (foreign.num_entries or foreign.num_classes)
    if RECORDS in first:
        codecs[RECORDS] = RecordCodec((first[RECORDS].shape[1],))
        row_bytes += codecs[RECORDS].row_bytes
    in_memory = _RANGE_BYTES // max(num_views * row_bytes, 4 * foreign.num_classes)  # of all views, or dense of one
    measures = measure_rows(fitted, first[LOGITS], fitted.encode(first[LOGITS]))
    return CacheSpec(
        keys=data.keys,
        num_views=num_views,
        codecs=codecs,
        teacher={"name": foreign.name, "versions": {"kdkit": __version__}},
        recipe=foreign.recipe,
        class_names=classes.names,
        names_classes=False,  # the labels may be of other classes than the folders
        skipped=skipped_of(data),
        shard_rows=max(BLOCK_ROWS, min(_SHARD_ROWS, in_memory) // BLOCK_ROWS * BLOCK_ROWS),
        fidelity={LOGITS: {**summarise_rows(measures), "each": each}},
    )


def _choose_codec(foreign: ForeignCache, codec: Codec | str | None, num_classes: int, *, is_multi_label: bool) -> Codec:
    if is_multi_label and not foreign.holds_logits:
        raise ConfigError(f"{foreign.name} has probabilities, and images of the data several labels: give logits")
    if isinstance(codec, Codec):
        return codec
    if is_multi_label:
        return multi_label_codec(codec, num_classes)
    entries = foreign.num_entries
    name = codec or ("float16" if entries is None else "topk")
    options = {"k": min(entries, num_classes)} if name == "topk" and entries is not None else {}
    return create_codec(name, num_classes, **options)


class _Files:
    """Pieces of the ranges, read when they are indexed: what a DataLoader takes as a dataset."""

    def __init__(self, foreign: ForeignCache, ranges: Sequence[tuple[int, int]]) -> None:
        self._foreign = foreign
        self._pieces = [
            range(first, min(first + _READ_ROWS, stop))
            for start, stop in ranges
            for first in range(start, stop, _READ_ROWS)
        ]

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, place: int) -> list[ForeignViews]:
        return [self._foreign.read(row) for row in self._pieces[place]]


def _read_files(
    foreign: ForeignCache, ranges: Sequence[tuple[int, int]], num_workers: int
) -> Iterator[list[ForeignViews]]:
    """The images of the ranges, a few at a time and in order."""
    loader: DataLoader[Any] = DataLoader(
        _Files(foreign, ranges),  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        worker_init_fn=leave_signals_to_parent,
    )
    try:
        with translate_worker_errors():
            yield from loader
    except DatasetError as error:  # from a worker its text comes wrapped in that of a traceback
        raise DatasetError(str(error).rsplit("DatasetError: ", 1)[-1].strip()) from error


def _as_it_is(images: Any) -> Any:
    return images
