"""The files of a run's images as a checkpoint keeps them: an image may be replaced under the same key.

Dimensions: N images, K images whose size is kept, M images whose content is read.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdkit.data import ReplayedDataset
from kdkit.data.sources.content import SampleContent
from kdkit.data.sources.selection import SelectedSource
from kdkit.data.views.seed import preserve_rng_state
from kdkit.errors import CheckpointError, DatasetError

Array = np.ndarray[Any, Any]
_SIZED = 10_000
"""Images whose size is kept: all of fewer, else those of the smallest CRC-32 of their keys."""
_READ, _READ_BYTES = 256, 32 << 20
"""Limits of what is read at each start: images, and bytes of files."""
_USUAL_BYTES = 128 << 10  # of an image whose size is not known
_NOT_KNOWN = -1  # a size
_UNREAD = 0  # a digest


@dataclass(frozen=True)
class ImageRecord:
    """Sizes and digests of a fixed choice of the images of a dataset."""

    dataset: ReplayedDataset
    """The images."""
    rows: list[int]
    """Rows of the K chosen images."""
    kind: str
    """Whether the content is that of files or decoded pixels."""
    values: Array
    """Sizes of K images in bytes, -1 where there is none, and the digests of the first M of them, 0 where one cannot
    be read: int64 [K + M]."""

    @classmethod
    def of(cls, dataset: ReplayedDataset) -> ImageRecord:
        """The record of the images as they are now: at most 10,000 sizes, and 256 files or 32 MiB read."""
        rows = _choose(dataset)
        with preserve_rng_state():  # an image of a custom source may be drawn
            content = SampleContent(SelectedSource(dataset.source, rows))
            known = content.stat().sizes
            sizes = np.full(len(rows), _NOT_KNOWN, dtype=np.int64) if known is None else known
            total = np.where(sizes == _NOT_KNOWN, _USUAL_BYTES, sizes)[:_READ].cumsum()
            num_read = max(1, int((total <= _READ_BYTES).sum()))
            digests = [_digest(content, place) for place in range(min(num_read, len(rows)))]
        return cls(dataset, rows, content.kind, np.concatenate([sizes, np.array(digests, dtype=np.int64)]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint: of 10,000 images about 30 kB."""
        return {"kind": self.kind, "values": zlib.compress(self.values.astype("<i8").tobytes())}

    def check_same(self, saved: Any, path: Path, name: str = "image") -> None:
        """Compares the images with those in the checkpoint at `path`, which have the same keys.

        Raises:
            DatasetError: names the first image that has another file.
            CheckpointError: the checkpoint's record is not one of these images.
        """
        if saved is None:  # of an older version
            return
        then = self._unpack(saved, path)
        if saved.get("kind") != self.kind:  # e.g. once a folder, and now arrays of its pixels
            return
        count = len(self.rows)
        common = min(len(then), len(self.values))
        old, new = then[:common], self.values[:common]
        is_digest = np.arange(common) >= count
        is_known = np.where(is_digest, (old != _UNREAD) & (new != _UNREAD), (old != _NOT_KNOWN) & (new != _NOT_KNOWN))
        for place in np.flatnonzero(is_known & (old != new)).tolist():
            row = self.rows[place - count if is_digest[place] else place]
            if self._is_skipped(row):
                continue
            how = f"of {old[place]:,} bytes, this run has one of {new[place]:,}"
            if is_digest[place]:
                how = "with another content than this run has"
            raise DatasetError(
                f"{str(path)!r} was made with a file for the {name} {self.dataset.keys[row]!r} {how}: resume with the "
                "same images, or start another run in another folder"
            )

    def _is_skipped(self, row: int) -> bool:
        """Whether an image became unreadable in a run that skips such images."""
        if not self.dataset.skips_unreadable:
            return False
        try:
            self.dataset[row, 0]
        except DatasetError:
            return True
        return False

    def _unpack(self, saved: Any, path: Path) -> Array:
        count = len(self.rows)
        try:
            packed = zlib.decompressobj().decompress(saved["values"], 8 * (count + _READ))
            values = np.frombuffer(packed, "<i8")
            if len(values) < count:
                raise ValueError("it is too short")
        except (zlib.error, ValueError, TypeError, LookupError) as error:
            raise CheckpointError(f"{str(path)!r} holds no sizes of these {count:,} images ({error})") from error
        return values


def _choose(dataset: ReplayedDataset) -> list[int]:
    """Rows of the images whose keys have the smallest CRC-32: the same choice in every process, spread over classes."""
    hashes = np.array([zlib.crc32(key.encode("utf-8", "surrogateescape")) for key in dataset.keys], dtype=np.uint32)
    rows: list[int] = np.argsort(hashes, kind="stable")[:_SIZED].tolist()
    return rows


def _digest(content: SampleContent, place: int) -> int:
    try:
        digest = hashlib.blake2b(content.read(place), digest_size=8).digest()
    except Exception:  # whatever it is: the loader names it, or skips the image
        return _UNREAD
    return int.from_bytes(digest, "little", signed=True)
