"""The files of a foreign cache by name: those below a folder, or the members of a tar, read in place."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kdkit.errors import DatasetError
from kdkit.importers._plain import MAX_BYTES
from kdkit.runtime.reading import open_regular

_COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZ": "bzip2 -d", b"\xfd7": "xz -d"}


class _Place(NamedTuple):
    """The location of a file's bytes."""

    path: str
    offset: int
    num_bytes: int


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
        found = _of_folder(self.source, suffix) if self.source.is_dir() else _of_tar(self.source, suffix)
        self._places: dict[str, _Place] = {}
        for name, place in found:
            if name in self._places:
                raise DatasetError(f"{str(source)!r} holds {name!r} twice: keep one of the two")
            self._places[name] = place
        if not self._places:
            raise DatasetError(f"{str(source)!r} holds no file with a name ending in {suffix!r}")

    @property
    def names(self) -> Mapping[str, object]:
        """The names, with / between their parts, relative to the source."""
        return self._places

    def read(self, name: str) -> bytes:
        """The bytes of one file, 64 MiB at most."""
        path, offset, num_bytes = self._places[name]
        if num_bytes > MAX_BYTES:
            raise DatasetError(f"{self.describe(name)} has {num_bytes:,} bytes, expected at most {MAX_BYTES:,}")
        try:
            with open_regular(path, error=DatasetError) as file:
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


def _of_folder(folder: Path, suffix: str) -> Iterator[tuple[str, _Place]]:
    for path in sorted(folder.rglob(f"*{suffix}")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), _Place(str(path), 0, path.stat().st_size)


def _no_source(path: Path, reason: str) -> DatasetError:
    return DatasetError(f"{str(path)!r} is neither a folder nor a readable tar: {reason}")


def _of_tar(path: Path, suffix: str) -> Iterator[tuple[str, _Place]]:
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
                        name = member.name.removeprefix("./")
                        yield name, _Place(str(path), member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, DatasetError):
            raise
        raise _no_source(path, str(error)) from None
