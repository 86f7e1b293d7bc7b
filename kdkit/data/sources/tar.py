"""Images in tar files, read without unpacking them: class folders in a tar, tars in a tar, or a folder of tars.

A tar within a tar is not compressed, so the place of an image is an offset and a size in the outermost file. No
handle is kept: a forked worker would move the file position of its parent.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from kdkit.data.sources.base import Columns, ImageSource, describe
from kdkit.data.sources.image import decode, is_image, suffix_of, unreadable
from kdkit.data.sources.listing import Listing, index_classes, is_ignored, natural_order
from kdkit.errors import DatasetError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_NUMBERED = re.compile(r"[-_.]\d{4,}$")
"""End of the names that writers of shards number: no such name is a class."""


@dataclass(frozen=True)
class Member:
    """The position of one file of a tar."""

    file: str
    """Path of the outermost tar."""
    tars: tuple[str, ...]
    """Names of the tars that it is in, below the root, outermost first."""
    name: str
    """Name in the innermost tar."""
    offset: int
    """First byte of its content in the outermost tar."""
    size: int
    """Length of its content, bytes."""

    @property
    def key(self) -> str:
        """The names of the tars and its own, joined by slashes."""
        return "/".join((*self.tars, self.name))

    def read(self) -> bytes:
        """Its content."""
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class TarSource:
    """A tar file, a tar of tars, or a folder of tars.

    The class of an image is the top folder in its tar; for an image in no folder, the name of its tar. Top folders that
    hold nothing but one folder are skipped in a single tar. A key is the path in the tar, preceded by the names of the
    tars that it is in.

    Args:
        path: the tar file, or the folder.

    Raises:
        DatasetError: there is no tar, no image in it, or a class is ambiguous.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        images = [
            (_member(image.member), name)
            for listing, tars in _listings(self.path)
            for image, name in zip(listing.images, _classes(listing, tars), strict=True)
        ]
        images.sort(key=lambda image: (natural_order(image[0].name), image[0].key))
        if not images:
            raise DatasetError(f"no images can be listed in the tar {str(path)!r}: expected CLASS/IMAGE.jpg")
        self._members = [member for member, _ in images]
        self.keys: Sequence[str] = [member.key for member in self._members]
        self.class_names: Sequence[str] | None
        self.targets, self.class_names = index_classes([name for _, name in images], str(path))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self._members[index], self.keys[index], str(self.path)), self.targets[index]

    def __repr__(self) -> str:
        return describe(self, repr(str(self.path)))


def create(name: str, columns: Columns) -> ImageSource | None:
    """The images of a .tar file or of a folder of tars; None for anything else."""
    path = Path(name)
    if name.lower().endswith(_COMPRESSED):
        raise DatasetError(f"{name!r} is compressed, so its images cannot be read in any order: unpack it to a .tar")
    if path.suffix.lower() != ".tar" and not is_tar_folder(path):
        return None
    columns.check_unused("a tar without .cls or .json files")
    return TarSource(path)


def is_tar_folder(path: Path) -> bool:
    """Whether this is a folder of tars, in which nothing else is data.

    Raises:
        DatasetError: images are next to the tars.
    """
    if not path.is_dir() or not tar_files(path) or any(_is_shown(inner) and inner.is_dir() for inner in path.iterdir()):
        return False
    beside = next((inner for inner in path.iterdir() if is_image(inner.name)), None)
    if beside is not None and _is_shown(beside):
        raise DatasetError(f"{str(path)!r} holds tars and images ({beside.name!r}): expected one of the two")
    return True


def tar_files(path: Path) -> list[Path]:
    """The tars of a folder in natural order, or the tar itself."""
    if path.is_dir():
        return sorted((file for file in path.glob("*.tar") if _is_shown(file)), key=lambda f: natural_order(f.name))
    return [path]


def list_members(file: Path, tars: tuple[str, ...] = ()) -> Iterator[Member]:
    """Everything in a tar and in the tars within it; folders, and each tar itself as ".", with the size -1.

    Args:
        file: the tar.
        tars: the names that precede the names of its members in their keys.

    Raises:
        DatasetError: it is not a tar, it is truncated, or an image in it is a link.
    """
    try:
        with tarfile.open(file, "r:") as tar:
            yield from _members_of(tar, str(file), tars, 0)
    except (OSError, tarfile.TarError) as error:
        raise DatasetError(f"no images can be listed in the tar {str(file)!r}: {error}") from error


def read_image(member: Member, key: str, origin: str) -> Image.Image:
    """The RGB image of a member.

    Raises:
        DatasetError: it is unreadable; names it.
    """
    try:
        content = member.read()
    except OSError as error:
        raise unreadable(key, origin, error) from None
    return decode(io.BytesIO(content), key, origin)


def _members_of(tar: tarfile.TarFile, file: str, tars: tuple[str, ...], start: int) -> Iterator[Member]:
    yield Member(file, tars, ".", start, -1)
    for info in tar:
        if info.isdir():
            yield Member(file, tars, info.name, start, -1)
        elif (info.issym() or info.islnk()) and is_image(info.name):
            raise DatasetError(f"{info.name!r} in the tar {file!r} is a link: pack its target instead (tar -h)")
        elif info.isfile() and suffix_of(info.name) == ".tar" and not is_ignored(os.path.normpath(info.name)):
            with tarfile.open(fileobj=tar.extractfile(info), mode="r:") as inner:
                yield from _members_of(inner, file, (*tars, info.name), start + info.offset_data)
        elif info.isfile():
            yield Member(file, tars, info.name, start + info.offset_data, info.size)


def _listings(path: Path) -> list[tuple[Listing, tuple[str, ...]]]:
    """The contents of each tar, with the names of the tars; tars that hold only tars are left out."""
    listings: dict[tuple[str, ...], Listing] = {}
    for file in tar_files(path):
        for member in list_members(file, (file.name,) if path.is_dir() else ()):
            listing = listings.setdefault(member.tars, Listing("/".join((str(path), *member.tars))))
            inner = os.path.normpath(member.name).lstrip("/")
            if member.size < 0:
                listing.add_folder(inner)
            else:
                listing.add_file(inner, key=member.key, member=member)
    outer = {tars[:depth] for tars in listings for depth in range(len(tars))}
    found = [(listing, tars) for tars, listing in listings.items() if listing.images or tars not in outer]
    for listing, _ in found:
        listing.finish()
    if len(found) == 1:
        found[0][0].unwrap()
    return found


def _classes(listing: Listing, tars: tuple[str, ...]) -> list[str]:
    """The class name of each image of one tar."""
    if not (tars and listing.is_flat):
        return listing.classes()
    name = PurePosixPath(tars[-1]).stem
    if _NUMBERED.search(name):
        raise DatasetError(
            f"the images in {listing.origin!r} have no label, and the name of a numbered shard is not a class: "
            "expected CLASS/IMAGE.jpg, or a .cls or .json file for each image"
        )
    return [name] * len(listing.images)


def _member(value: object) -> Member:
    assert isinstance(value, Member)
    return value


def _is_shown(path: Path) -> bool:
    return not is_ignored(path.name)
