"""open_cache and CachedTeacher: a teacher that reads its answers.

Dimensions: B batch, C classes, N samples of a dataset, R rows of the cache.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.cache.codecs import Codec, RowCodec, TopKCodec
from kdkit.cache.format import LOGITS
from kdkit.cache.matching import Replayable, match_dataset, match_keys
from kdkit.cache.opening import locate, open_packed, open_parts, verify_arrays
from kdkit.cache.stored import stored_keys, stored_pixels
from kdkit.cache.summary import num_bytes, summarise
from kdkit.errors import CacheError, CacheMismatchError, CacheStreamError, ConfigError
from kdkit.signals import Batch, TeacherOutput

Array = np.ndarray[Any, Any]


def open_cache(
    path: str | Path,
    dataset: Replayable | None = None,
    *,
    streams: Collection[str] | None = None,
    verify: bool = True,
    sparse: bool = False,
    allow_mismatch: Collection[str] = (),
) -> CachedTeacher:
    """Opens a cache for reading, packed or in parts.

    Args:
        path: the packed file, its parts folder, or the path that it would be packed to.
        dataset: what a run will train on. Its keys, recipe, class names and some of its pixels are compared with what
            the cache was made with, and its rows are matched to the cache's. Without it rows are the cache's own.
        streams: what a batch is answered with, such as ["logits", "pooled"]; the others are not read. None: all.
        verify: whether a block's checksum is compared when it is first touched.
        sparse: whether a topk cache answers with its k classes alone, so that no tensor [B, C] is ever built for the
            teacher: for very many classes, with the losses kl, soft_ce and dkd.
        allow_mismatch: names of fields, as an error names them, whose difference is accepted.

    Raises:
        CacheNotFoundError: there is no cache at `path`.
        CacheIncompleteError: its build has not finished.
        CacheMismatchError: it was made with something else; names the field and both values.
        CacheStreamError: it does not hold one of the streams; names those that it does.
        CacheCorruptError: it is damaged.
    """
    cache = CachedTeacher(path, streams=streams, verify=verify, sparse=sparse)
    if dataset is not None:
        cache.match(dataset, allow_mismatch=allow_mismatch)
    return cache


class CachedTeacher:
    """A TeacherSource that answers from a cache. Pickles by path; safe to use after a fork and in threads.

    Attributes:
        path: the packed file or the parts folder.
        metadata: what the cache is and what it was made with.
        streams: what a batch is answered with: "logits" or the teacher's taps.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        streams: Collection[str] | None = None,
        verify: bool = True,
        sparse: bool = False,
    ) -> None:
        self.path = locate(Path(path))
        self._verify = verify
        self._sparse = sparse
        self._rows: Array | None = None
        if self.path.is_dir():
            self.metadata, self._codecs, self._payloads = open_parts(self.path, verify)
        else:
            self.metadata, self._codecs, self._payloads = open_packed(self.path, verify)
        self.streams = tuple(self._codecs) if streams is None else tuple(streams)
        for stream in self.streams:
            self._refuse_missing(stream)
        if sparse and not isinstance(self._codecs.get(LOGITS), TopKCodec):
            found = f"the codec {self._codecs[LOGITS].name!r}" if LOGITS in self._codecs else "no logits"
            raise ConfigError(f"the cache {str(path)!r} has {found}: only topk answers sparsely")

    @property
    def num_rows(self) -> int:
        """Samples R."""
        return self.metadata.num_rows

    @property
    def num_views(self) -> int:
        """Views of each sample."""
        return self.metadata.num_views

    @property
    def num_classes(self) -> int:
        """Classes C of the logits; where it holds none, of the dataset.

        Raises:
            CacheStreamError: it holds no logits, and the dataset named no classes.
        """
        codec, names = self._codecs.get(LOGITS), self.metadata.dataset["class_names"]
        if isinstance(codec, Codec):
            return codec.num_classes
        if names is None:
            self._refuse_missing(LOGITS)
        return len(names)

    @property
    def codecs(self) -> Mapping[str, RowCodec]:
        """Stream name -> its codec."""
        return self._codecs

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return num_bytes(self.path)

    def keys(self) -> list[str]:
        """The sample keys in row order, read from the file."""
        return stored_keys(self.path, self.num_rows)

    def match_keys(self, keys: Sequence[str]) -> Array:
        """Cache row of each of a dataset's samples, int64 [N], by their keys.

        Raises:
            CacheMismatchError: a sample was added, removed or renamed; named.
        """
        return match_keys(self.path, self.num_rows, keys)

    def pixel_crc32(self, view: int) -> dict[int, int]:
        """Row -> CRC-32 of its pixels, for the rows of `view` that the build hashed."""
        return stored_pixels(self.path, self.metadata, view)

    def match(self, dataset: Replayable, *, allow_mismatch: Collection[str] = ()) -> None:
        """Compares the cache with `dataset`, and from then on takes a batch's rows as that dataset's.

        Raises:
            CacheMismatchError: recipe, samples, class names or pixels differ.
        """
        self._rows = match_dataset(self.path, self.metadata, dataset, allow_mismatch)

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

    def read(self, rows: Array | Tensor, view: int, stream: str = LOGITS) -> Tensor:
        """Encoded rows, uint8 [B, row_bytes], for cache rows int64 [B] in any order, repeats allowed.

        Raises:
            CacheStreamError: there is no such stream.
            CacheError: there is no such view or row.
            CacheCorruptError: a touched block does not match its checksum.
        """
        indices = np.asarray(rows, dtype=np.int64)
        self._refuse_missing(stream)
        if (view, stream) not in self._payloads:
            raise CacheError(f"the cache {str(self.path)!r} has views 0 to {self.num_views - 1}, asked for {view}")
        if indices.size and indices.view(np.uint64).max() >= self.num_rows:  # negative ones are huge when unsigned
            raise CacheError(
                f"the cache {str(self.path)!r} has rows 0 to {self.num_rows - 1}, asked for {indices.max()}"
            )
        return torch.from_numpy(self._payloads[view, stream].read(indices))

    def __call__(self, batch: Batch) -> TeacherOutput:
        """What the teacher said about the batch's rows in its view, decoded on the device of its input.

        Raises:
            CacheMismatchError: the cache was not matched with a dataset, or the batch has no rows or view.
        """
        if batch.row is None or batch.view is None:
            raise CacheMismatchError("the batch does not say which rows and view it shows: load it with ReplayLoader")
        rows, view, device = self.rows_of(batch.row), batch.view, batch.input.device
        payloads = {stream: _to_device(self.read(rows, view, stream), device) for stream in self.streams}
        with torch.autocast(device.type, enabled=False):  # a loop may ask within its own
            return self._decode(payloads)

    def _decode(self, payloads: dict[str, Tensor]) -> TeacherOutput:
        """Stream -> uint8 [B, row_bytes], as what the teacher said."""
        logits, codec = payloads.pop(LOGITS, None), self._codecs.get(LOGITS)
        features = {stream: self._codecs[stream].decode(payload) for stream, payload in payloads.items()}
        if logits is None or codec is None:
            return TeacherOutput(features=features)
        if self._sparse and isinstance(codec, TopKCodec):
            return TeacherOutput(features=features, sparse=codec.decode_sparse(logits))
        return TeacherOutput(codec.decode(logits), features)

    def summary(self) -> dict[str, str]:
        """What the cache holds and what it was made with, as text for people, in reading order."""
        return summarise(self.path, self.metadata, self._codecs)

    def verify(self) -> None:
        """Reads everything and compares every checksum.

        Raises:
            CacheCorruptError: names file, view and rows.
        """
        verify_arrays(self.path, self.metadata)
        for payload in self._payloads.values():
            payload.verify_all()

    def _refuse_missing(self, stream: str) -> None:
        if stream not in self._codecs:
            wanted = ",".join([*self._codecs, stream])
            raise CacheStreamError(
                f"the cache {str(self.path)!r} has no stream {stream!r}, it has streams {', '.join(self._codecs)}: "
                f"build one that has it with `kdkit cache build ... --build.streams {wanted}`"
            )

    def __getstate__(self) -> dict[str, Any]:
        options = {"streams": self.streams, "verify": self._verify, "sparse": self._sparse}
        return {"path": self.path, "options": options, "rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], **state["options"])  # type: ignore[misc]
        self._rows = state["rows"]


def _to_device(payload: Tensor, device: torch.device) -> Tensor:
    return (payload.pin_memory() if device.type == "cuda" else payload).to(device, non_blocking=True)
