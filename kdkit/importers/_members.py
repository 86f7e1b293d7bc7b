"""The files of a foreign cache by name: those below a folder, or the members of a tar, read in place."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from kdkit.errors import DatasetError
from kdkit.importers._plain import MAX_BYTES
from kdkit.runtime.reading import open_regular

_COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZ": "bzip2 -d", b"\xfd7": "xz -d"}


class Members:
    """The regular files of a folder or of an uncompressed tar. Pickles; opens nothing but the file it reads.

    Links and devices of a tar are ignored, and nothing is ever extracted, so a member's name leads nowhere.

    Args:
        source: the folder or the tar.
        suffix: end of the names that count, such as ".pth.tar".

    Raises:
        DatasetError: there is no such folder or tar, it is compressed, or two members have one name.
    """

    def __init__(self, source: str | Path, suffix: str) -> None:
        self.source = Path(source)
        self._is_folder = self.source.is_dir()
        self._places: dict[str, tuple[int, int] | None] = {}  # of a tar offset and bytes; there may be a million
        if self._is_folder:
            self._places = dict.fromkeys(sorted(_of_folder(str(self.source), "", suffix)))
        for name, offset, num_bytes in () if self._is_folder else _of_tar(self.source, suffix):
            if name in self._places:
                raise DatasetError(f"{str(source)!r} holds {name!r} twice: keep one of the two")
            self._places[name] = offset, num_bytes
        if not self._places:
            raise DatasetError(f"{str(source)!r} holds no file with a name ending in {suffix!r}")

    @property
    def names(self) -> Mapping[str, object]:
        """The names, with / between their parts, relative to the source."""
        return self._places

    def read(self, name: str) -> bytes:
        """The bytes of one file, 64 MiB at most."""
        place = self._places[name]
        path = self.source / name if place is None else self.source
        try:
            with open_regular(path, error=DatasetError) as file:
                offset, num_bytes = place or (0, os.fstat(file.fileno()).st_size)
                if num_bytes > MAX_BYTES:
                    raise DatasetError(f"it has {num_bytes:,} bytes, expected at most {MAX_BYTES:,}")
                file.seek(offset)
                content = file.read(num_bytes)
        except DatasetError as error:
            raise DatasetError(f"{self.describe(name)} cannot be read: {error}") from None
        if len(content) != num_bytes:
            raise DatasetError(f"{self.describe(name)} is cut short: {len(content)} of {num_bytes} bytes")
        return content

    def describe(self, name: str) -> str:
        """The file, for errors."""
        return f"{name!r} in {str(self.source)!r}"


def _of_folder(folder: str, below: str, suffix: str) -> Iterator[str]:
    """Names of the files, relative to `folder`, in the folder `below` it and all under that; "" or ending in /."""
    folders = []
    with os.scandir(f"{folder}/{below}") as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{below}{entry.name}/")
            elif entry.name.endswith(suffix) and entry.is_file():
                yield below + entry.name
    for name in folders:
        yield from _of_folder(folder, name, suffix)


def _no_source(path: Path, reason: str) -> DatasetError:
    return DatasetError(f"{str(path)!r} is neither a folder nor a readable tar: {reason}")


def _of_tar(path: Path, suffix: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and bytes of each file."""
    try:
        with open_regular(path, error=partial(_no_source, path)) as file:
            start = file.read(2)
            if start in _COMPRESSED:
                raise DatasetError(
                    f"{str(path)!r} is compressed, so its members cannot be found: {_COMPRESSED[start]} it"
                )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every one of a million
                    if member.isreg() and not member.issparse() and member.name.endswith(suffix):
                        yield member.name.removeprefix("./"), member.offset_data, member.size
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, DatasetError):
            raise
        raise _no_source(path, str(error)) from None
