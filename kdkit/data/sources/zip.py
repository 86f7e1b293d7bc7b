"""Images in a zip file, read without unpacking it."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from kdkit.data.sources.base import Columns, ImageSource, describe
from kdkit.data.sources.image import decode, unreadable
from kdkit.data.sources.listing import Listing, index_classes
from kdkit.errors import DatasetError


class ZipSource:
    """A zip file of class folders of images; a key is the path within the zip file.

    The class is the top folder; folders that hold nothing but one folder are skipped, since archives are often packed
    with the folder that they were made from. Each process opens the file separately, because a forked worker would move
    the file position of its parent.

    Args:
        path: the zip file.

    Raises:
        DatasetError: it is not a zip file, holds no image, or its folders are not classes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open: tuple[int, zipfile.ZipFile] | None = None
        listing = Listing(str(path))
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = archive.infolist()
        except (OSError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{str(path)!r} cannot be opened as a zip file: {error}") from error
        for member in members:
            inner = str(PurePosixPath(member.filename))  # "./a/1.png" is the key "a/1.png"
            if member.is_dir():
                listing.add_folder(inner)
            else:
                listing.add_file(inner, member=member.filename)
        listing.finish()
        listing.unwrap()
        self.keys: Sequence[str] = [image.key for image in listing.images]
        self._members = [str(image.member) for image in listing.images]
        self.class_names: Sequence[str] | None
        self.targets, self.class_names = index_classes(listing.classes(), str(path))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        key = self.keys[index]
        try:
            content = self._archive().read(self._members[index])
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise unreadable(key, str(self.path), error) from None
        return decode(io.BytesIO(content), key, str(self.path)), self.targets[index]

    def __repr__(self) -> str:
        return describe(self, repr(str(self.path)))

    def _archive(self) -> zipfile.ZipFile:
        """This process's own handle."""
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), zipfile.ZipFile(self.path)
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


def create(name: str, columns: Columns) -> ImageSource | None:
    """The images of a .zip file; None for anything else."""
    if Path(name).suffix.lower() != ".zip":
        return None
    columns.check_unused("a zip file")
    return ZipSource(name)
