"""Gives access to the contents of a cache: encoded rows, keys, pixel hashes, fidelity.

Dimensions: B batch, C classes, N samples of a dataset, R rows of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from kdkit.cache.codecs import Codec, FeatureCodec, RowCodec
from kdkit.cache.fidelity import summarise_views
from kdkit.cache.format.constants import LOGITS, RECORDS
from kdkit.cache.hdf5.documents import BuildRecord, read_build_record
from kdkit.cache.lazy_arrays import stored_absent, stored_content, stored_fidelity, stored_keys, stored_pixels
from kdkit.cache.matching import match_keys
from kdkit.cache.opening import locate, open_place, verify_arrays
from kdkit.cache.payload import Payload
from kdkit.cache.summary import num_bytes, summarise
from kdkit.cache.types import Array
from kdkit.errors import CacheError, CacheNotFoundError, CacheStreamError
from kdkit.recipe import ViewRecipe

_ROW = np.dtype(np.int64)


class CacheFile:
    """An open cache: a packed file or a folder of shards. Its files stay mapped while it exists; no close needed.

    Args:
        path: as `open_cache` takes it.
        verify: verify each block on first access.

    Attributes:
        metadata: contents and origin of the cache.
    """

    def __init__(self, path: str | Path, *, verify: bool = True) -> None:
        self._path, (self.metadata, codecs, self._payloads) = open_place(Path(path), verify)
        self._codecs = {stream: codec for stream, codec in codecs.items() if stream != RECORDS}

    @property
    def build_record(self) -> BuildRecord:
        """How the build ran."""
        return read_build_record(self.path)

    @property
    def path(self) -> Path:
        """The packed file or the folder of shards; the packed file once a writer has packed the folder."""
        if not self._path.exists():
            with suppress(CacheNotFoundError):
                self._path = locate(self._path)
        return self._path

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
        """Number of classes C of the logits; without logits, that of the dataset.

        Raises:
            CacheStreamError: the cache has no logits, and the dataset has no class names.
        """
        codec, names = self._codecs.get(LOGITS), self.metadata.dataset["class_names"]
        if isinstance(codec, Codec):
            return codec.num_classes
        if names is None:
            self.check_exists(LOGITS)
        return len(names)

    @property
    def is_multi_label(self) -> bool:
        """Whether the logits are multi-label: one distribution per class, not one over all classes."""
        codec = self._codecs.get(LOGITS)
        return isinstance(codec, Codec) and codec.multi_label

    @property
    def names_classes(self) -> bool:
        """Whether the class names of its dataset are those of its logits; imported labels may be of other classes."""
        codec, names = self._codecs.get(LOGITS), self.metadata.dataset["class_names"]
        return names is None or not isinstance(codec, Codec) or codec.num_classes == len(names)

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes [C], in order; None if the cache does not hold them."""
        names: Sequence[str] | None = self.metadata.dataset["class_names"]
        return names

    @property
    def codecs(self) -> Mapping[str, RowCodec]:
        """Stream of the teacher's outputs -> its codec."""
        return self._codecs

    @property
    def feature_widths(self) -> dict[str, int]:
        """Stream of features -> its width D, the first side of [D] and [D, H, W], the second of [N, D]."""
        shapes = {name: codec.shape for name, codec in self._codecs.items() if isinstance(codec, FeatureCodec)}
        return {name: shape[1 if len(shape) == 2 else 0] for name, shape in shapes.items()}

    @property
    def recipe(self) -> ViewRecipe:
        """Recipe of its views, with their number."""
        return ViewRecipe.from_dict(self.metadata.recipe)

    @property
    def teacher(self) -> Mapping[str, Any]:
        """Fingerprint of the teacher that it was made with."""
        return self.metadata.teacher

    @property
    def identity(self) -> str:
        """SHA-256 of its metadata, without the number of views."""
        return self.metadata.identity_sha256

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return num_bytes(self.path)

    def keys(self) -> list[str]:
        """The sample keys in row order, read from the file."""
        return stored_keys(self.path, self.num_rows)

    @cached_property
    def absent_keys(self) -> Sequence[str]:
        """Keys of the samples that its build left out, because they could not be read; they have no rows."""
        return stored_absent(self.path, self.metadata)

    def content(self) -> Array:
        """The content record of each row, uint8 [R, 28]; none if the cache has no records."""
        return stored_content(self.path, self.metadata)

    def match_keys(self, keys: Sequence[str]) -> Array:
        """Cache row of each of a dataset's samples, int64 [N], by their keys.

        Raises:
            CacheMismatchError: a sample was added, removed or renamed; named.
        """
        return match_keys(self.path, self.num_rows, keys)

    def pixel_crc32(self, view: int) -> dict[int, int]:
        """Row -> CRC-32 of its pixels, for the hashed rows of `view`; empty if the cache has no pixels."""
        return stored_pixels(self.path, self.metadata, view)

    def fidelity(self) -> dict[str, list[dict[str, float]]]:
        """Stream -> the codec's fidelity per view: what `metadata.fidelity` has, and for features "relative_error_p90".

        The build measured it, on the same rows of every view; the error about the mean and the cosine in view 0 alone.
        Empty for a cache written before this was measured.
        """
        stored = stored_fidelity(self.path, self.metadata)
        return {stream: summarise_views(views, self.metadata.fidelity[stream]) for stream, views in stored.items()}

    def read_encoded(self, rows: Array | Tensor, view: Array | Tensor | int, stream: str = LOGITS) -> Tensor:
        """Encoded rows, uint8 [B, row_bytes], for cache rows int64 [B] in any order, repeats allowed.

        Args:
            rows: cache rows.
            view: the view of each row, int64 [B], or one for all.
            stream: a stream of the teacher's outputs.

        Raises:
            CacheStreamError: there is no such stream.
            CacheError: there is no such view or row.
            CacheCorruptError: a touched block does not match its checksum.
        """
        indices = np.asarray(rows, _ROW)
        if indices.size and indices.item(indices.argmin()) < 0:  # several microseconds less than (indices < 0).any()
            self._check_rows(indices)
        if not isinstance(view, int):
            views = np.asarray(view, _ROW)
            first = int(views.flat[0]) if views.size else 0
            view = views if views.ndim and (views != first).any() else first
        try:
            if not isinstance(view, int):
                return self._read_views(indices, view, stream)
            return torch.from_numpy(self._payload(view, stream).read(indices))
        except IndexError:  # numpy checks the upper bound anyway
            self._check_rows(indices)

    def _read_views(self, indices: Array, views: Array, stream: str) -> Tensor:
        """The same for rows of several views, int64 [B] each."""
        payloads = {view: self._payload(view, stream) for view in sorted(set(views.tolist()))}
        encoded = np.empty((len(indices), next(iter(payloads.values())).row_bytes), dtype=np.uint8)
        for view, payload in payloads.items():
            (mine,) = (views == view).nonzero()
            encoded[mine] = payload.read(indices[mine])
        return torch.from_numpy(encoded)

    def _payload(self, view: int, stream: str) -> Payload:
        """The encoded rows of one stream of one view.

        Raises:
            CacheStreamError, CacheError: there is no such stream or view.
        """
        payload = self._payloads.get((view, stream))
        if payload is None:
            self.check_exists(stream)
            raise CacheError(f"the cache {str(self.path)!r} has views 0 to {self.num_views - 1}, got view {view}")
        return payload

    def read_records(self, rows: Array | Tensor, view: int) -> Tensor:
        """Recorded parameters of views, uint8 [B, bytes], with the arguments of `read_encoded`.

        Raises:
            CacheStreamError: the cache holds no recorded views.
        """
        return self.read_encoded(rows, view, RECORDS)

    def _check_rows(self, indices: Array) -> NoReturn:
        odd = indices[(indices < 0) | (indices >= self.num_rows)][0]
        raise CacheError(f"the cache {str(self.path)!r} has rows 0 to {self.num_rows - 1}, got row {odd}") from None

    def summary(self) -> dict[str, str]:
        """Contents and origin of the cache, label -> text, in reading order."""
        return summarise(self.path, self.metadata, self._codecs, self.fidelity())

    def verify(self) -> None:
        """Reads everything and compares every checksum.

        Raises:
            CacheCorruptError: names file, view and rows.
        """
        verify_arrays(self.path, self.metadata)
        for payload in self._payloads.values():
            payload.verify_all()

    def check_exists(self, stream: str) -> None:
        """Raises CacheStreamError if the cache holds no such stream; names the streams that it holds."""
        if stream not in self._codecs:
            wanted = ",".join([*self._codecs, stream])
            raise CacheStreamError(
                f"the cache {str(self.path)!r} has no stream {stream!r}, it has streams {', '.join(self._codecs)}: "
                f"build one that has it with `kdkit cache build ... --streams {wanted}`"
            )
