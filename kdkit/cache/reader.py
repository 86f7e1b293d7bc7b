"""open_cache and CachedTeacher: a teacher that reads its answers.

Dimensions: B batch, C classes, N samples of a dataset, R rows of the cache.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdkit.cache.codecs import Codec
from kdkit.cache.door import open_hdf5
from kdkit.cache.format import DIGEST_NAME, KEYS_NAME, hashed_rows, pixel_name
from kdkit.cache.keys import key_digests, match_rows, unpack_keys
from kdkit.cache.mismatch import refuse_mismatch
from kdkit.cache.opening import locate, open_packed, open_parts, verify_arrays
from kdkit.cache.parts import Parts
from kdkit.cache.pixels import check_pixels
from kdkit.config import ReplayRecipe
from kdkit.errors import CacheError, CacheMismatchError
from kdkit.signals import Batch, TeacherOutput

Array = np.ndarray[Any, Any]
LOGITS = "logits"


class Replayable(Protocol):
    """What a cache must know of a dataset: kdkit.data.ReplayedDataset is one."""

    keys: Sequence[str]
    class_names: Sequence[str] | None
    recipe: ReplayRecipe

    def __getitem__(self, index: tuple[int, int]) -> Any:
        """The sample at (row, view), with its pixels, uint8 [3, H, W], as `.image`."""
        ...


def open_cache(
    path: str | Path,
    dataset: Replayable | None = None,
    *,
    verify: bool = True,
    allow_mismatch: Collection[str] = (),
) -> CachedTeacher:
    """Opens a cache for reading, packed or in parts.

    Args:
        path: the packed file, its parts folder, or the path that it would be packed to.
        dataset: what a run will train on. Its keys, recipe, class names and some of its pixels are compared with what
            the cache was made with, and its rows are matched to the cache's. Without it rows are the cache's own.
        verify: whether a block's checksum is compared when it is first touched.
        allow_mismatch: names of fields, as an error names them, whose difference is accepted.

    Raises:
        CacheNotFoundError: there is no cache at `path`.
        CacheIncompleteError: its build has not finished.
        CacheMismatchError: it was made with something else; names the field and both values.
        CacheCorruptError: it is damaged.
    """
    cache = CachedTeacher(path, verify=verify)
    if dataset is not None:
        cache.match(dataset, allow_mismatch=allow_mismatch)
    return cache


class CachedTeacher:
    """A TeacherSource that answers from a cache. Pickles by path; safe to use after a fork and in threads.

    Attributes:
        path: the packed file or the parts folder.
        metadata: what the cache is and what it was made with.
    """

    def __init__(self, path: str | Path, *, verify: bool = True) -> None:
        self.path = locate(Path(path))
        self._verify = verify
        self._rows: Array | None = None
        if self.path.is_dir():
            self.metadata, self._codecs, self._payloads = open_parts(self.path, verify)
        else:
            self.metadata, self._codecs, self._payloads = open_packed(self.path, verify)

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
        """Classes C of the logits."""
        return self._codecs[LOGITS].num_classes

    @property
    def codecs(self) -> Mapping[str, Codec]:
        """Stream name -> its codec."""
        return self._codecs

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        files = self.path.iterdir() if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files)

    def keys(self) -> list[str]:
        """The sample keys in row order, read from the file."""
        with open_hdf5(self._index_path()) as file:
            return unpack_keys(file.flat(KEYS_NAME, "u1"), self.num_rows, repr(str(self.path)))

    def match(self, dataset: Replayable, *, allow_mismatch: Collection[str] = ()) -> None:
        """Compares the cache with `dataset`, and from then on takes a batch's rows as that dataset's.

        Raises:
            CacheMismatchError: recipe, samples, class names or pixels differ.
        """
        origin = f"the cache {str(self.path)!r}"
        refuse_mismatch("recipe", self.metadata.recipe, dataset.recipe.to_dict(), origin, allow_mismatch)
        names = None if dataset.class_names is None else list(dataset.class_names)
        refuse_mismatch(
            "dataset",
            {"class_names": self.metadata.dataset["class_names"]},
            {"class_names": names},
            origin,
            allow_mismatch,
        )
        self._rows = self._match_keys(dataset.keys, allow_mismatch)
        check_pixels(dataset, self._rows, self._pixel_crc32(0), origin)

    def read(self, rows: Array | Tensor, view: int, stream: str = LOGITS) -> Tensor:
        """Encoded rows, uint8 [B, row_bytes], for cache rows int64 [B] in any order, repeats allowed.

        Raises:
            CacheError: there is no such view, stream or row.
            CacheCorruptError: a touched block does not match its checksum.
        """
        indices = np.asarray(rows, dtype=np.int64)
        if (view, stream) not in self._payloads:
            raise CacheError(
                f"the cache {str(self.path)!r} has no stream {stream!r} of view {view}: it has views 0 to "
                f"{self.num_views - 1} and streams {', '.join(self._codecs)}"
            )
        if indices.size and (indices.min() < 0 or indices.max() >= self.num_rows):
            raise CacheError(
                f"the cache {str(self.path)!r} has rows 0 to {self.num_rows - 1}, asked for {indices.max()}"
            )
        return torch.from_numpy(self._payloads[view, stream].read(indices))

    def __call__(self, batch: Batch) -> TeacherOutput:
        """What the teacher said about the batch's rows in its view, decoded on the device of its input.

        Raises:
            CacheMismatchError: the cache was not matched with a dataset, or the batch has no rows or view.
        """
        if self._rows is None:
            raise CacheMismatchError(
                f"the cache {str(self.path)!r} was not matched with a dataset: open_cache(path, dataset)"
            )
        if batch.row is None or batch.view is None:
            raise CacheMismatchError("the batch does not say which rows and view it shows: load it with ReplayLoader")
        payload = self.read(self._rows[batch.row.numpy()], batch.view)
        device = batch.input.device
        if device.type == "cuda":
            payload = payload.pin_memory()
        return TeacherOutput(self._codecs[LOGITS].decode(payload.to(device, non_blocking=True)))

    def summary(self) -> dict[str, str]:
        """What the cache holds and what it was made with, as text for people, in reading order."""
        metadata, teacher = self.metadata, self.metadata.teacher
        names = metadata.dataset["class_names"]
        return {
            "path": str(self.path),
            "rows": f"{self.num_rows:,} samples x {self.num_views} views",
            "bytes": f"{self.num_bytes:,}",
            **{f"  {name}": f"{codec.name}, {codec.row_bytes} bytes a row" for name, codec in self._codecs.items()},
            "classes": f"{self.num_classes}" + ("" if names is None else f" ({names[0]!r} ... {names[-1]!r})"),
            "teacher": f"{teacher['name']}, {teacher['dtype']}, weights {teacher['weights_sha256'][:16]}",
            "recipe": ", ".join(f"{name} {value}" for name, value in metadata.recipe.items() if value is not None),
            "dataset": f"keys {metadata.dataset['keys_sha256'][:16]}",
            "versions": ", ".join(f"{name} {value}" for name, value in teacher["versions"].items()),
        }

    def verify(self) -> None:
        """Reads everything and compares every checksum.

        Raises:
            CacheCorruptError: names file, view and rows.
        """
        verify_arrays(self.path, self.metadata)
        for payload in self._payloads.values():
            payload.verify_all()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "verify": self._verify, "rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], verify=state["verify"])  # type: ignore[misc]
        self._rows = state["rows"]

    def _index_path(self) -> Path:
        return Parts.open(self.path).index if self.path.is_dir() else self.path

    def _match_keys(self, keys: Sequence[str], allow_mismatch: Collection[str]) -> Array:
        """Cache row of each dataset sample, int64 [N]."""
        with open_hdf5(self._index_path()) as file:
            digests = file.array(DIGEST_NAME, "u1", (self.num_rows, 16))
            rows = match_rows(digests, key_digests(keys))
        added = [keys[i] for i in np.flatnonzero(rows < 0)[:_NAMED]]
        if added:
            number = int((rows < 0).sum())
            raise CacheMismatchError(
                f"the cache {str(self.path)!r} was made from another dataset: {number} of {len(keys)} samples are not "
                f"in it ({_list_names(added, number)}): build a cache from this dataset"
            )
        number = self.num_rows - len(np.unique(rows))
        if number and "dataset.samples" not in allow_mismatch:
            present = set(keys)
            removed = [key for key in self.keys() if key not in present][:_NAMED]
            raise CacheMismatchError(
                f"the cache {str(self.path)!r} was made from another dataset: {number} of its {self.num_rows} samples "
                f"are missing now ({_list_names(removed, number)}): restore them, or allow 'dataset.samples' to differ"
            )
        return rows

    def _pixel_crc32(self, view: int) -> dict[int, int]:
        """Row -> CRC-32 of its pixels, for the hashed rows of `view`."""
        hashes: dict[int, int] = {}
        if self.path.is_dir():
            parts = Parts(self.path, self.metadata)
            places = [(parts.shard_path(s), s.start, s.stop) for s in self.metadata.shards() if s.view == view]
        else:
            places = [(self.path, 0, self.num_rows)]
        for path, start, stop in places:
            rows = hashed_rows(start, stop)
            with open_hdf5(path) as file:
                values = file.array(pixel_name(view), "<u4", (len(rows),))
            hashes.update(zip(rows, values.tolist(), strict=True))
        return hashes


_NAMED = 3  # how many samples an error names


def _list_names(names: Sequence[str], number: int) -> str:
    listed = ", ".join(repr(name) for name in names)
    return f"{listed} and {number - len(names)} more" if number > len(names) else listed
