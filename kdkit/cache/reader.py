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

from kdkit.cache.codecs import Codec, TopKCodec
from kdkit.cache.door import open_hdf5
from kdkit.cache.fidelity import TEMPERATURES
from kdkit.cache.format import DIGEST_NAME, KEYS_NAME, Shard, hashed_rows, pixel_name
from kdkit.cache.keys import key_digests, match_rows, refuse_other_samples, unpack_keys
from kdkit.cache.mismatch import refuse_mismatch
from kdkit.cache.opening import locate, open_packed, open_parts, verify_arrays
from kdkit.cache.parts import Parts
from kdkit.cache.pixels import check_pixels, checked_views
from kdkit.config import ReplayRecipe
from kdkit.errors import CacheError, CacheMismatchError, ConfigError
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

    def for_teacher(self) -> Replayable:
        """The same samples as the teacher sees them."""
        ...


def open_cache(
    path: str | Path,
    dataset: Replayable | None = None,
    *,
    verify: bool = True,
    sparse: bool = False,
    allow_mismatch: Collection[str] = (),
) -> CachedTeacher:
    """Opens a cache for reading, packed or in parts.

    Args:
        path: the packed file, its parts folder, or the path that it would be packed to.
        dataset: what a run will train on. Its keys, recipe, class names and some of its pixels are compared with what
            the cache was made with, and its rows are matched to the cache's. Without it rows are the cache's own.
        verify: whether a block's checksum is compared when it is first touched.
        sparse: whether a topk cache answers with its k classes alone, so that no tensor [B, C] is ever built for the
            teacher: for very many classes, with the losses kl, soft_ce and dkd.
        allow_mismatch: names of fields, as an error names them, whose difference is accepted.

    Raises:
        CacheNotFoundError: there is no cache at `path`.
        CacheIncompleteError: its build has not finished.
        CacheMismatchError: it was made with something else; names the field and both values.
        CacheCorruptError: it is damaged.
    """
    cache = CachedTeacher(path, verify=verify, sparse=sparse)
    if dataset is not None:
        cache.match(dataset, allow_mismatch=allow_mismatch)
    return cache


class CachedTeacher:
    """A TeacherSource that answers from a cache. Pickles by path; safe to use after a fork and in threads.

    Attributes:
        path: the packed file or the parts folder.
        metadata: what the cache is and what it was made with.
    """

    def __init__(self, path: str | Path, *, verify: bool = True, sparse: bool = False) -> None:
        self.path = locate(Path(path))
        self._verify = verify
        self._sparse = sparse
        self._rows: Array | None = None
        if self.path.is_dir():
            self.metadata, self._codecs, self._payloads = open_parts(self.path, verify)
        else:
            self.metadata, self._codecs, self._payloads = open_packed(self.path, verify)
        if sparse and not isinstance(self._codecs[LOGITS], TopKCodec):
            raise ConfigError(
                f"the cache {str(path)!r} has the codec {self._codecs[LOGITS].name!r}: only topk answers sparsely"
            )

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
        return stored_keys(self.path, self.num_rows)

    def match(self, dataset: Replayable, *, allow_mismatch: Collection[str] = ()) -> None:
        """Compares the cache with `dataset`, and from then on takes a batch's rows as that dataset's.

        Raises:
            CacheMismatchError: recipe, samples, class names or pixels differ.
        """
        origin = f"the cache {str(self.path)!r}"
        recipe = ReplayRecipe.completed(self.metadata.recipe)
        refuse_mismatch("recipe", recipe, dataset.recipe.to_dict(), origin, allow_mismatch)
        names = None if dataset.class_names is None else list(dataset.class_names)
        refuse_mismatch(
            "dataset",
            {"class_names": self.metadata.dataset["class_names"]},
            {"class_names": names},
            origin,
            allow_mismatch,
        )
        self._rows = self.match_keys(dataset.keys, allow_mismatch)
        hashes = {view: self._pixel_crc32(view) for view in checked_views(self.num_views)}
        check_pixels(dataset, self._rows, hashes, self.metadata.dataset.get("versions") or {}, origin)

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
            CacheError: there is no such view, stream or row.
            CacheCorruptError: a touched block does not match its checksum.
        """
        indices = np.asarray(rows, dtype=np.int64)
        if (view, stream) not in self._payloads:
            raise CacheError(
                f"the cache {str(self.path)!r} has no stream {stream!r} of view {view}: it has views 0 to "
                f"{self.num_views - 1} and streams {', '.join(self._codecs)}"
            )
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
        payload = self.read(self.rows_of(batch.row), batch.view)
        device = batch.input.device
        if device.type == "cuda":
            payload = payload.pin_memory()
        payload, codec = payload.to(device, non_blocking=True), self._codecs[LOGITS]
        if self._sparse and isinstance(codec, TopKCodec):
            return TeacherOutput(sparse=codec.decode_sparse(payload))
        return TeacherOutput(codec.decode(payload))

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
            **{f"{name} kept": _describe_fidelity(values) for name, values in metadata.fidelity.items()},
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
        return {"path": self.path, "verify": self._verify, "sparse": self._sparse, "rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], verify=state["verify"], sparse=state["sparse"])  # type: ignore[misc]
        self._rows = state["rows"]

    def _index_path(self) -> Path:
        return Parts.open(self.path).index if self.path.is_dir() else self.path

    def match_keys(self, keys: Sequence[str], allow_mismatch: Collection[str] = ()) -> Array:
        """Cache row of each dataset sample, int64 [N].

        Raises:
            CacheMismatchError: a sample was added, removed or renamed; named.
        """
        with open_hdf5(self._index_path()) as file:
            digests = file.array(DIGEST_NAME, "u1", (self.num_rows, 16))
            rows = match_rows(digests, key_digests(keys))
        if (rows < 0).any() or ("dataset.samples" not in allow_mismatch and len(np.unique(rows)) < self.num_rows):
            refuse_other_samples(self.keys(), keys, f"the cache {str(self.path)!r}")
        return rows

    def _pixel_crc32(self, view: int) -> dict[int, int]:
        """Row -> CRC-32 of its pixels, for the hashed rows of `view`."""
        hashes: dict[int, int] = {}
        if not self.path.is_dir():
            return shard_pixel_crc32(self.path, Shard(view, 0, self.num_rows))
        parts = Parts(self.path, self.metadata)
        for shard in self.metadata.shards_of(view):
            hashes |= shard_pixel_crc32(parts.shard_path(shard), shard)
        return hashes


def shard_pixel_crc32(path: Path, shard: Shard) -> dict[int, int]:
    """Row -> CRC-32 of its pixels, for the hashed rows of the shard in the file at `path`; a packed file is one."""
    rows = hashed_rows(shard.start, shard.stop)
    with open_hdf5(path) as file:
        return dict(zip(rows, file.array(pixel_name(shard.view), "<u4", (len(rows),)).tolist(), strict=True))


def stored_keys(path: Path, num_rows: int) -> list[str]:
    """The sample keys, in row order, of a packed file or a parts folder, finished or not."""
    index = Parts.open(path).index if path.is_dir() else path
    with open_hdf5(index) as file:
        return unpack_keys(file.flat(KEYS_NAME, "u1"), num_rows, repr(str(index)))


def _describe_fidelity(values: Mapping[str, float]) -> str:
    kl = ", ".join(f"{values[f'kl_mean_t{t}']:.2g} (p99 {values[f'kl_p99_t{t}']:.2g}) at T={t}" for t in TEMPERATURES)
    return f"KL in nats {kl}; top-1 kept {values['top1_agreement']:.2%} of {values['rows']:.0f} rows"
