"""Statistics of a teacher's predictions, for each row and view: entropy, probability and class of the likeliest class.

They are computed in one pass over the cache and kept beside it, in FILE.statistics.safetensors.
Dimensions: R rows, V views, C classes, B rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from kdkit.cache.format.metadata import CacheMetadata
from kdkit.cache.lazy_arrays import rows_sha256
from kdkit.cache.types import Array
from kdkit.errors import ConfigError, KdkitError, WriteError
from kdkit.runtime import files
from kdkit.runtime.reading import open_regular

_CHUNK = 1024
_SUFFIX = ".statistics.safetensors"
_VERSION = "1"


@dataclass(frozen=True)
class CacheStatistics:
    """The teacher's predictions in figures, each [R, V]: a row for each row of the cache, a column for each view."""

    entropy: Array
    """Entropy of the class probabilities at temperature 1, nats, float32."""
    top1_probability: Array
    """Probability of the likeliest class, float32."""
    top1_class: Array
    """Index of the likeliest class, int32."""

    def agrees(self, labels: Array) -> Array:
        """Whether the likeliest class is the label of the row, bool [R, V]; true for rows without a label.

        Args:
            labels: class index of each row, int64 [R]; -1 for none.
        """
        agreement: Array = (self.top1_class == labels[:, None]) | (labels[:, None] < 0)
        return agreement

    def take(self, rows: Array, num_views: int) -> CacheStatistics:
        """The statistics of some rows, int64 [rows], in the first views."""
        return CacheStatistics(*(getattr(self, field.name)[rows, :num_views] for field in fields(self)))


class _Rows(Protocol):
    """The part of a cache that its statistics need."""

    @property
    def path(self) -> Path: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_views(self) -> int: ...
    @property
    def metadata(self) -> CacheMetadata: ...
    @property
    def identity(self) -> str: ...
    @property
    def is_multi_label(self) -> bool: ...
    def decode_logits(self, rows: Array, view: int) -> Tensor: ...


def statistics_of(cache: _Rows, advance: Callable[[int], None] = lambda rows: None) -> CacheStatistics:
    """The statistics of a cache with logits: those beside it, or else computed in one pass and kept there.

    A folder that cannot be written is no error: they are computed each time. `advance` is called with the number of
    rows of each chunk that is decoded.

    Raises:
        ConfigError: the logits are multi-label.
    """
    if cache.is_multi_label:
        raise ConfigError(
            f"the cache {str(cache.path)!r} is multi-label, so it has no likeliest class and no confidence in one: "
            "leave out min_confidence and label_agreement"
        )
    place = cache.path.with_name(cache.path.name + _SUFFIX)
    rows = rows_sha256(cache.path, cache.metadata)  # equal builds of replaced images have one identity
    origin = {"version": _VERSION, "identity": cache.identity, "num_views": str(cache.num_views), "rows": rows}
    found = _read(place, origin, (cache.num_rows, cache.num_views))
    if found is None:
        found = compute(cache.decode_logits, cache.num_rows, cache.num_views, advance)
        with suppress(WriteError), files.atomic_write(place) as temporary:
            try:
                save_file({name: np.ascontiguousarray(array) for name, array in vars(found).items()}, temporary, origin)
                files.share(temporary)
            except SafetensorError as error:  # safetensors wraps every file-system error in it
                raise OSError(str(error)) from error
    return found


def compute(
    logits_of: Callable[[Array, int], Tensor], num_rows: int, num_views: int, advance: Callable[[int], None]
) -> CacheStatistics:
    """Computes the statistics of logits [B, C] that `logits_of(rows, view)` gives, in chunks of rows."""
    entropy = np.empty((num_rows, num_views), np.float32)
    probability, choice = np.empty_like(entropy), np.empty_like(entropy, np.int32)
    for view in range(num_views):
        for first in range(0, num_rows, _CHUNK):
            rows = np.arange(first, min(first + _CHUNK, num_rows))
            log_p = torch.log_softmax(logits_of(rows, view).float(), dim=1)
            p = log_p.exp()
            entropy[rows, view] = -(p * log_p).sum(dim=1).cpu().numpy()
            top, index = p.max(dim=1)
            probability[rows, view], choice[rows, view] = top.cpu().numpy(), index.cpu().numpy()
            advance(len(rows))
    return CacheStatistics(entropy, probability, choice)


def _read(place: Path, origin: dict[str, str], shape: tuple[int, int]) -> CacheStatistics | None:
    """The statistics in a file; None if there are none, or they are another cache's or damaged."""
    try:
        with open_regular(place):
            pass
        with safe_open(place, framework="np") as file:
            if file.metadata() != origin:
                return None
            arrays = {field.name: file.get_tensor(field.name) for field in fields(CacheStatistics)}
    except (KdkitError, SafetensorError, OSError, ValueError, TypeError):
        return None
    kinds = {"entropy": np.float32, "top1_probability": np.float32, "top1_class": np.int32}
    if any(array.shape != shape or array.dtype != kinds[name] for name, array in arrays.items()):
        return None
    return CacheStatistics(**arrays)
