"""Reads a cache: CachedTeacher looks up a batch's encoded rows and decodes them with their codecs.

Dimensions: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdkit.cache.codecs import RowCodec, TopKCodec
from kdkit.cache.file import CacheFile
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.matching import Replayable, check_not_replaced, match_dataset
from kdkit.cache.pixels import other_pixels
from kdkit.cache.statistics import CacheStatistics, statistics_of
from kdkit.cache.summary import describe_content
from kdkit.cache.types import Array
from kdkit.errors import CacheMismatchError, ConfigError
from kdkit.recipe import ViewRecipe
from kdkit.types import Batch, TeacherOutput, TeacherSource


class CacheReader(TeacherSource, Protocol):
    """A TeacherSource that reads its outputs from a cache: the interface that training needs.

    Attributes:
        streams: streams returned per batch: "logits" or the teacher's taps; may be narrowed to a subset.
    """

    streams: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes C of the logits; without logits, that of the dataset."""
        ...

    @property
    def num_rows(self) -> int:
        """Samples of the cache; a run may train on a part of them."""
        ...

    @property
    def codecs(self) -> Mapping[str, RowCodec]:
        """Stream name -> its codec."""
        ...

    @property
    def is_multi_label(self) -> bool:
        """Whether the logits are multi-label: one distribution per class."""
        ...

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes [C], in order; None if they are not known."""
        ...

    @property
    def names_classes(self) -> bool:
        """Whether `class_names` are those of its logits; imported labels may be of other classes than the data."""
        ...

    @property
    def feature_widths(self) -> Mapping[str, int]:
        """Stream of features -> its width D."""
        ...

    @property
    def recipe(self) -> ViewRecipe:
        """Recipe of its views, with their number."""
        ...

    @property
    def teacher(self) -> Mapping[str, Any]:
        """Fingerprint of the teacher that it was made with."""
        ...

    @property
    def identity(self) -> str:
        """SHA-256 of its metadata, without the number of views; of several caches, one of each."""
        ...

    @property
    def absent_keys(self) -> Sequence[str]:
        """Keys of the samples that its build left out, because they could not be read; they have no rows."""
        ...

    def match(self, dataset: Replayable, *, allow_mismatch: Collection[str] = ()) -> None:
        """Checks it against `dataset`; from then on, batch rows index this dataset.

        Raises:
            CacheMismatchError: recipe, samples, class names or pixels differ.
        """
        ...

    def check_exists(self, stream: str) -> None:
        """Raises CacheStreamError if it holds no such stream."""
        ...


class CachedTeacher(CacheFile):
    """A CacheReader over a packed file or a folder of shards. Pickles by path; safe to use after a fork and in threads.

    Args:
        path: the file or folder.
        streams: streams returned per batch; all by default.
        verify: whether the checksum of each part is compared when it is first read.
        sparse: whether logits of the codec topk are returned as stored, without the classes that were left out.

    Attributes:
        streams: streams returned per batch: "logits" or the teacher's taps.

    Raises:
        CacheError: a child of it for a file that is missing, damaged, or not a cache.
        CacheStreamError: the cache has no such stream.
        ConfigError: `sparse` for another codec than topk.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        streams: Collection[str] | None = None,
        verify: bool = True,
        sparse: bool = False,
    ) -> None:
        super().__init__(path, verify=verify)
        self._verify = verify
        self._sparse = sparse
        self._rows: Array | None = None
        self._pixels: dict[int, dict[int, int]] = {}  # view -> hashed row -> CRC-32
        named = (streams,) if isinstance(streams, str) else streams  # else its letters would be streams
        self.streams = tuple(self._codecs) if named is None else tuple(named)
        for stream in self.streams:
            self.check_exists(stream)
        if sparse and not isinstance(self._codecs.get(LOGITS), TopKCodec):
            found = f"the codec {self._codecs[LOGITS].name!r}" if LOGITS in self._codecs else "no logits"
            raise ConfigError(f"the cache {str(path)!r} has {found}: only topk can be read sparsely")

    def match(self, dataset: Replayable, *, allow_mismatch: Collection[str] = ()) -> None:
        """Checks the cache against `dataset`; from then on, batch rows index this dataset.

        Raises:
            CacheMismatchError: recipe, samples, class names or pixels differ.
        """
        self._rows = match_dataset(self.path, self.metadata, dataset, allow_mismatch, names_classes=self.names_classes)

    def check_averageable(self) -> None:
        """Raises ConfigError for multi-label logits, which are not a distribution that can be averaged."""
        if self.is_multi_label:
            raise ConfigError(f"the cache {str(self.path)!r} is multi-label, so it cannot be averaged: open it alone")

    def rows_of(self, rows: Tensor) -> Array:
        """Cache rows int64 [B] of the matched dataset's rows int64 [B].

        Raises:
            CacheMismatchError: the cache was not matched with a dataset.
        """
        if self._rows is None:
            raise CacheMismatchError(
                f"the cache {str(self.path)!r} was not matched with a dataset: open_cache(path, dataset)"
            )
        matched: Array = self._rows[rows.numpy()]
        return matched

    def __call__(self, batch: Batch) -> TeacherOutput:
        """The teacher's outputs for the batch's rows and views, decoded on the device of its input.

        Raises:
            CacheMismatchError: the cache was not matched with a dataset, or the batch has no rows or view.
        """
        if batch.row is None or batch.view is None:
            raise CacheMismatchError("the batch has no rows or no view: load it with ReplayLoader")
        rows, view, device = self.rows_of(batch.row), batch.view, batch.input.device
        self._check_pixels(batch, rows, view)
        payloads = {stream: _to_device(self.read_encoded(rows, view, stream), device) for stream in self.streams}
        with torch.autocast(device.type, enabled=False):  # a loop may call this within its own
            return self._decode(payloads)

    def decode_logits(self, rows: Array, view: int) -> Tensor:
        """Log-probabilities, which serve as logits, [B, C] of cache rows int64 [B] in a view; multi-label, the logits.

        Raises:
            CacheStreamError: the cache has no logits.
        """
        self.check_exists(LOGITS)
        return self._codecs[LOGITS].decode(self.read_encoded(rows, view))

    def statistics(self, advance: Callable[[int], None] = lambda rows: None) -> CacheStatistics:
        """Entropy, top-1 probability and top-1 class of the teacher for each row and view, kept beside the cache.

        Args:
            advance: called with the number of rows that were read, if they are not beside the cache yet.

        Raises:
            CacheStreamError: the cache has no logits.
            ConfigError: they are multi-label.
        """
        self.check_exists(LOGITS)
        return statistics_of(self, advance)

    def _check_pixels(self, batch: Batch, rows: Array, view: Tensor | int) -> None:
        """Compares the pixels of hashed rows with those that the teacher saw.

        Raises:
            CacheMismatchError: they differ; names the sample.
        """
        teacher_size = self.metadata.recipe.get("teacher_size")
        if batch.pixel_crc32 is None or (teacher_size is not None and batch.teacher_input is None):
            return  # a student's smaller view is not the one that the teacher saw
        views, hashes = np.broadcast_to(np.asarray(view), rows.shape), batch.pixel_crc32.numpy()
        hashed = hashes >= 0
        found = zip(views[hashed].tolist(), rows[hashed].tolist(), hashes[hashed].tolist(), strict=True)
        for of, row, crc32 in found:
            if of not in self._pixels:
                self._pixels[of] = self.pixel_crc32(of)
            if self._pixels[of].get(row, crc32) != crc32:
                made_with = self.metadata.dataset.get("versions") or {}
                raise other_pixels(self.keys()[row], of, made_with, f"the cache {str(self.path)!r}")

    def _decode(self, payloads: dict[str, Tensor]) -> TeacherOutput:
        """The outputs decoded from encoded rows, stream -> uint8 [B, row_bytes]."""
        logits, codec = payloads.pop(LOGITS, None), self._codecs.get(LOGITS)
        features = {stream: self._codecs[stream].decode(payload) for stream, payload in payloads.items()}
        if logits is None or codec is None:
            return TeacherOutput(features=features)
        if self._sparse and isinstance(codec, TopKCodec):
            return TeacherOutput(features=features, sparse=codec.decode_sparse(logits))
        return TeacherOutput(codec.decode(logits), features, is_normalized=not self.is_multi_label)

    def __repr__(self) -> str:
        return f"CachedTeacher({str(self.path)!r}: {describe_content(self.metadata, self.codecs)})"

    def __getstate__(self) -> dict[str, Any]:
        options = {"streams": self.streams, "verify": self._verify, "sparse": self._sparse}
        return {"path": self.path, "options": options, "rows": self._rows, "metadata": self.metadata}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], **state["options"])  # type: ignore[misc]
        check_not_replaced(self.path, state["metadata"], self.metadata)
        self._rows = state["rows"]


def _to_device(payload: Tensor, device: torch.device) -> Tensor:
    return (payload.pin_memory() if device.type == "cuda" else payload).to(device, non_blocking=True)
