"""Images in tar and zip archives, read where they lie.

No handle is shared by processes: a worker that was forked would move the file position under its parent's feet.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from kdkit.data.sources.base import checked_class_names, decode, in_order, unreadable
from kdkit.errors import DatasetError


class TarSource:
    """A tar file, a tar of tars, or a folder of tars (one a class, say), listed by timm's reader.

    A class is the folder, or else the tar, that an image lies in. A key is the path of the image, behind those of the
    tars it lies in.

    Args:
        path: the tar file, or the folder.

    Raises:
        DatasetError: there is no tar, or no image in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:  # no tarinfo cache: that would write a pickle beside the data, and read one
            reader: Any = ReaderImageInTar(str(path), cache_tarinfo=False)
        except (OSError, tarfile.TarError, AssertionError, ValueError) as error:
            raise DatasetError(f"no images can be listed in the tar {str(path)!r}: {error}") from error
        self._places = [_place(self.path, *sample) for sample in reader.samples]
        self._targets: list[int] = [int(target) for target in reader.targets]
        self.keys: Sequence[str] = [_tar_key(*sample) for sample in reader.samples]
        self.class_names: Sequence[str] | None = checked_class_names(in_order(reader.class_name_to_idx), str(path))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        name, offset, size = self._places[index]
        try:
            with open(name, "rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise unreadable(self.keys[index], str(self.path), error) from None
        return decode(io.BytesIO(content), self.keys[index], str(self.path)), self._targets[index]


class ZipSource:
    """A zip file of class folders of images; a key is the path within it.

    timm has no reader of zip files; classes and order are those of its folder reader.

    Args:
        path: the zip file.

    Raises:
        DatasetError: it is no zip file, or holds no image.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open: tuple[int, zipfile.ZipFile] | None = None
        suffixes = get_img_extensions(as_set=True)
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = [info.filename for info in archive.infolist() if not info.is_dir()]
        except (OSError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{str(path)!r} cannot be opened as a zip file: {error}") from error
        listed = [(PurePosixPath(name), name) for name in names]
        images = [(p, name) for p, name in listed if p.suffix.lower() in suffixes and not p.name.startswith("._")]
        if not images:
            raise DatasetError(f"the zip file {str(path)!r} holds no images: expected CLASS/IMAGE.jpg or the like")
        members = sorted(((str(place), name) for place, name in images), key=lambda member: natural_key(member[0]))
        self.keys: Sequence[str] = [key for key, _ in members]
        self._members = [name for _, name in members]  # "./a/1.png" is the key "a/1.png"
        classes = sorted({place.parent.name for place, _ in images}, key=natural_key)
        indices = {name: index for index, name in enumerate(classes)}
        self._targets = [indices[PurePosixPath(key).parent.name] for key in self.keys]
        self.class_names: Sequence[str] | None = checked_class_names(classes, str(path))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        key = self.keys[index]
        try:
            content = self._archive().read(self._members[index])
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise unreadable(key, str(self.path), error) from None
        return decode(io.BytesIO(content), key, str(self.path)), self._targets[index]

    def _archive(self) -> zipfile.ZipFile:
        """This process's own handle."""
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), zipfile.ZipFile(self.path)
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


def _tar_key(member: Any, parent: str | None, child: Any) -> str:
    return "/".join(part for part in (parent, child and child.name, member.name) if part)


def _place(path: Path, member: Any, parent: str | None, child: Any) -> tuple[str, int, int]:
    """(file, offset, bytes) of an image; a tar within a tar lies there as it is, so offsets add up."""
    offset = member.offset_data + (child.offset_data if child is not None else 0)
    return str(path / parent if parent else path), offset, member.size
