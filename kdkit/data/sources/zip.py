"""Images in a zip file, read without unpacking it."""

from __future__ import annotations

import io
import logging
import os
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from kdkit.data.sources.base import ImageSource, LabelRule, SourceOptions, describe
from kdkit.data.sources.class_order import index_classes
from kdkit.data.sources.image import decode, unreadable
from kdkit.data.sources.listing import Listing, inner_path
from kdkit.errors import DatasetError
from kdkit.runtime.reading import open_binary

_IS_UTF_8 = 1 << 11  # flag of a member whose name is UTF-8
_logger = logging.getLogger(__name__)


class _Archive(zipfile.ZipFile):
    """A zip file that owns the regular file it was opened from, and closes it with itself.

    Names are UTF-8 where all are, also without the flag that says so, which macOS leaves out; else those without the
    flag are in the code page 437.
    """

    _file: BinaryIO | None = None
    is_utf_8 = True

    def __init__(self, path: Path) -> None:
        self._file = open_binary(path)
        super().__init__(self._file)
        plain = [info for info in self.infolist() if not info.flag_bits & _IS_UTF_8]
        try:
            names = [info.filename.encode("cp437").decode("utf-8") for info in plain]
        except UnicodeDecodeError:
            self.is_utf_8 = False
            return
        for info, name in zip(plain, names, strict=True):
            info.filename = name  # by its first name, orig_filename, it is found in the file
        self.NameToInfo = {info.filename: info for info in self.infolist()}

    def close(self) -> None:
        super().close()
        if self._file is not None:
            self._file.close()


class ZipSource:
    """A zip file of class folders of images; a key is the path within the zip file.

    The class is the top folder; folders that hold nothing but one folder are skipped, since archives are often packed
    with the folder that they were made from. Each process opens the file separately, because a forked worker would move
    the file position of its parent.

    Args:
        path: the zip file.
        labels: "folder" takes the top folders as classes, whatever their names; "none" takes every image without a
            label.
        skip_missing: skips what should hold an image and does not; see `kdkit.data.create_source`.

    Attributes:
        skipped: one text for each entry that was skipped.

    Raises:
        DatasetError: it is not a zip file, holds no image, or its folders are not classes.
    """

    def __init__(self, path: str | Path, *, labels: LabelRule | None = None, skip_missing: bool = False) -> None:
        self.path = Path(path)
        self._open: tuple[int, zipfile.ZipFile] | None = None
        options = SourceOptions(labels=labels, skip_missing=skip_missing)
        options.check_rule("a zip file", "folder")
        listing = Listing(str(path), options)
        try:
            with _Archive(self.path) as archive:
                members = archive.infolist()
        except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
            raise DatasetError(f"{str(path)!r} cannot be opened as a zip file: {error}") from error
        if not archive.is_utf_8:
            old = next(name for name in (member.filename for member in members) if not name.isascii())
            _logger.warning(
                "%r: names such as %r are not in UTF-8, and are read in the code page 437: if they look wrong, pack "
                "the files again",
                *(str(path), old),
            )
        for member in members:
            inner = inner_path(member.filename, str(path))
            if member.is_dir():
                listing.add_folder(inner)
            elif stat.S_ISLNK(member.external_attr >> 16):
                listing.add_link(inner, "zip file")
            else:
                listing.add_file(inner, member=member.filename)
        listing.finish()
        _check_slashes(listing, labels)
        self.keys: Sequence[str] = [image.key for image in listing.images]
        self._members = [str(image.member) for image in listing.images]
        self.class_names: Sequence[str] | None = None
        self.targets = [-1] * len(self.keys)
        if labels != "none":
            listing.unwrap()
            self.targets, self.class_names = index_classes(listing.classes(), str(path))
        self.skipped: Sequence[str] = listing.left_out.skipped
        listing.left_out.log()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        key = self.keys[index]
        try:
            content = self._archive().read(self._members[index])
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise unreadable(key, str(self.path), error) from None
        return decode(io.BytesIO(content), key, str(self.path)), self.targets[index]

    def __repr__(self) -> str:
        return describe(self, repr(str(self.path)))

    def _archive(self) -> zipfile.ZipFile:
        """This process's own handle."""
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), _Archive(self.path)
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


def create(name: str, options: SourceOptions) -> ImageSource | None:
    """The images of a .zip file; None for anything else."""
    if Path(name).suffix.lower() != ".zip" or Path(name).is_dir():
        return None
    options.check_no_columns("a zip file")
    return ZipSource(name, labels=options.labels, skip_missing=options.skip_missing)


def _check_slashes(listing: Listing, labels: LabelRule | None) -> None:
    """Raises DatasetError if backslashes are between the folders, as some programs of Windows write them."""
    first = listing.images[0].path
    if labels != "none" and listing.is_flat and "\\" in first:
        raise DatasetError(
            f"{listing.origin!r} has backslashes between its folders ({first!r}), expected slashes: unpack it, and "
            "give the folder"
        )
