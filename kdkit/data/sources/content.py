"""The content of a source's samples, before decoding: a cache knows it, so that a replaced image is noticed.

The content of a sample is its file, byte for byte, whether the file is in a folder, an archive or a table; of images
that are in no file, the decoded pixels. Dimensions: N samples of a source.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from timm.data import ImageDataset
from torchvision.datasets import DatasetFolder

from kdkit.data.sources.base import ImageSource
from kdkit.data.sources.classes import ClassesSource
from kdkit.data.sources.folder import FolderSource
from kdkit.data.sources.hugging_face import HuggingFaceTable
from kdkit.data.sources.joined import JoinedSource
from kdkit.data.sources.mapped import MappedSource
from kdkit.data.sources.member import Member
from kdkit.data.sources.multi_label import MultiLabelSource
from kdkit.data.sources.selection import SelectedSource, Unlabelled
from kdkit.data.sources.table import TableSource
from kdkit.data.sources.tar import TarSource
from kdkit.data.sources.webdataset import WebDatasetSource
from kdkit.data.sources.zip import ZipSource
from kdkit.runtime.reading import open_binary

Array = np.ndarray[Any, Any]
_THREADS = 16  # a network file system answers many calls at a time
_CHUNK = 4096


@dataclass(frozen=True)
class Stat:
    """What is known of all samples without reading them."""

    sizes: Array | None = None
    """Bytes of each file, int64 [N]; -1 for a file that cannot be found. None where there are no files."""
    checksums: Array | None = None
    """CRC-32 of each file, uint32 [N], where an archive's directory holds them."""
    changed: Array | None = None
    """Time of each file's last change, seconds since 1970, float64 [N]."""


class SampleContent:
    """The content of each sample of a source. Pickles as its source does.

    Args:
        source: any source.
    """

    def __init__(self, source: ImageSource) -> None:
        rows: Any = None
        while isinstance(source, (ClassesSource, SelectedSource, Unlabelled, MultiLabelSource)):
            if isinstance(source, (ClassesSource, SelectedSource)):
                rows = source.rows if rows is None else [source.rows[row] for row in rows]
            source = source.source
        self._parts, self._places = _parts(source, range(len(source)) if rows is None else rows)
        self._source: Any = source
        self._rows: Sequence[int] = range(len(source)) if rows is None else rows
        self._has_paths = len(source) > 0 and _path(source, 0) is not None
        self._members = _members(source)

    @property
    def kind(self) -> Literal["files", "pixels"]:
        """Whether the content is that of files, or decoded pixels; of several sources, of all of them."""
        if self._parts:
            return "files" if all(part.kind == "files" for part in self._parts) else "pixels"
        source = self._source
        has_files = isinstance(source, ZipSource) or (
            isinstance(source, MappedSource) and isinstance(source.dataset, (ImageDataset, HuggingFaceTable))
        )
        return "files" if has_files or self._has_paths or self._members is not None else "pixels"

    def read(self, row: int) -> bytes:
        """The content of one sample.

        Raises:
            OSError, DatasetError: it cannot be read.
        """
        if self._parts:
            number, row = self._places[row]
            return self._parts[number].read(row)
        row, source = self._rows[row], self._source
        if (path := _path(source, row)) is not None:
            with open_binary(path) as file:
                return file.read()
        if self._members is not None:
            return bytes(self._members[row].read())
        if isinstance(source, ZipSource):
            content: bytes = source._archive().read(source._members[row])
            return content
        if isinstance(source, MappedSource) and (found := _mapped_bytes(source, row)) is not None:
            return found
        image: Image.Image = source[row][0]
        return b"%d %d " % image.size + image.tobytes()

    def stat(self) -> Stat:
        """Sizes, checksums and times, as far as they are known without reading an image: one stat per file."""
        if self._parts:
            return _join([part.stat() for part in self._parts], self._places)
        if self._has_paths:
            sizes, changed = _stat_all([str(_path(self._source, row)) for row in self._rows])
            return Stat(sizes, None, changed)
        if self._members is not None:
            members = [self._members[row] for row in self._rows]
            files = {member.file: _stat(member.file)[1] for member in members}
            changed = np.array([files[member.file] for member in members], dtype=np.float64)
            return Stat(np.array([member.size for member in members], dtype=np.int64), None, changed)
        if isinstance(self._source, ZipSource):
            archive = self._source._archive()
            infos = [archive.getinfo(self._source._members[row]) for row in self._rows]
            sizes = np.array([info.file_size for info in infos], dtype=np.int64)
            return Stat(sizes, np.array([info.CRC for info in infos], dtype=np.uint32))
        return Stat()


def _parts(source: Any, rows: Sequence[int]) -> tuple[list[SampleContent], list[tuple[int, int]]]:
    """The content of each source of a joined one, and the part and the row in it of each row; else nothing."""
    if not isinstance(source, JoinedSource):
        return [], []
    inner: list[list[int]] = [[] for _ in source.sources]
    places = []
    for number, row in map(source.place_of, rows):
        places.append((number, len(inner[number])))
        inner[number].append(row)
    pairs = zip(source.sources, inner, strict=True)
    return [SampleContent(SelectedSource(part, held)) for part, held in pairs], places


def _join(stats: Sequence[Stat], places: Sequence[tuple[int, int]]) -> Stat:
    """What is known of the samples of all parts, in the order of `places`."""

    def joined(name: str) -> Array | None:
        known = [(getattr(stats[number], name), row) for number, row in places]
        return None if any(values is None for values, _ in known) else np.array([values[row] for values, row in known])

    return Stat(joined("sizes"), joined("checksums"), joined("changed"))


def _path(source: Any, row: int) -> str | None:
    """Path of a sample's file, where each sample is a plain file; else None."""
    if isinstance(source, FolderSource):
        return f"{source.root}/{source.keys[row]}"
    if isinstance(source, TableSource):
        return os.path.join(source.path.parent, source._paths[row])  # noqa: PTH118 -- a million Paths take seconds
    if isinstance(source, MappedSource) and isinstance(source.dataset, DatasetFolder):
        return str(source.dataset.samples[source._rows[row]][0])
    return None


def _members(source: Any) -> Sequence[Member] | None:
    if isinstance(source, TarSource):
        return source._members
    return source._images if isinstance(source, WebDatasetSource) else None


def _mapped_bytes(source: MappedSource, row: int) -> bytes | None:
    """The file of a sample of timm's ImageDataset or of a Hugging Face dataset; None of any other."""
    inner = source._rows[row]
    if isinstance(source.dataset, ImageDataset):
        source.reopen_after_fork()
        with source.dataset.reader[inner][0] as stream:
            content: bytes = stream.read()
            return content
    if isinstance(source.dataset, HuggingFaceTable):
        image, _ = source.dataset[inner]
        if isinstance(image, Mapping) and image.get("bytes") is not None:
            return bytes(image["bytes"])
        if isinstance(image, Mapping) and image.get("path") is not None:
            return Path(image["path"]).read_bytes()
    return None


def _stat_all(paths: Sequence[str]) -> tuple[Array, Array]:
    """Size int64 [N] and time of the last change float64 [N] of each file."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda chunk: [_stat(path) for path in chunk], chunks))
    table = np.array([each for chunk in found for each in chunk], dtype=np.float64).reshape(-1, 2)
    return table[:, 0].astype(np.int64), table[:, 1]


def _stat(path: str) -> tuple[int, float]:
    """Size and time of the last change; renaming another file over a file changes only the inode's time."""
    try:
        status = os.stat(path)  # noqa: PTH116 -- a million Paths take seconds
    except OSError:
        return -1, 0.0
    return status.st_size, max(status.st_mtime, status.st_ctime)
