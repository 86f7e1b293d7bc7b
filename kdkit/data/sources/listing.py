"""Rules that turn file paths into images and classes, and the order of both.

Image folders, zip files and tar files follow the same rules:

- an image is a file with the suffix of a format that Pillow decodes;
- hidden files and folders, and files that operating systems leave behind, are ignored;
- the class is the top folder, however deep the image is below it;
- images and classes are in natural order, in which 2 precedes 10; ties are broken by the exact name, so the order is
  the same in every process;
- nothing is dropped silently: an empty class folder, a dangling symlink and an image that cannot be decoded are errors.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

from kdkit.data.sources.image import UNSUPPORTED_SUFFIXES, is_image, suffix_of
from kdkit.errors import DatasetError

_logger = logging.getLogger(__name__)
_LEFT_BEHIND = {
    "__MACOSX",
    "Thumbs.db",
    "desktop.ini",
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
}
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sort key of paths and class names: numbers by value, case ignored, ties broken by the exact name.

    timm's `natural_key` has ties: A and a, or 1 and 01, could sort differently in another process.
    """
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def is_ignored(path: str) -> bool:
    """Whether a path is hidden or left behind by an operating system, or is in such a folder."""
    return any(part.startswith(".") or part in _LEFT_BEHIND for part in path.split("/"))


class Entry(NamedTuple):
    """One image of a listing."""

    path: str
    """Path below the root, its parts joined by slashes."""
    key: str
    """The sample's key."""
    member: object = None
    """The value by which the source finds the image."""


class Listing:
    """Collects the files of a folder or archive, then assigns classes.

    Args:
        origin: path of the folder or archive, for messages.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.images: list[Entry] = []
        self._folders: set[str] = set()
        self._others: list[str] = []

    def add_file(self, path: str, *, key: str | None = None, member: object = None) -> None:
        """Adds a file, if it is an image.

        Raises:
            DatasetError: it is an image of a format that cannot be decoded.
        """
        if is_ignored(path):
            return
        self._folders.add(path.rpartition("/")[0])
        if is_image(path):
            self.images.append(Entry(path, path if key is None else key, member))
        elif suffix_of(path) in UNSUPPORTED_SUFFIXES:
            raise DatasetError(
                f"Pillow cannot decode {path!r} in {self.origin!r}: convert it, e.g. to PNG, or move it elsewhere"
            )
        else:
            self._others.append(path)

    def add_folder(self, path: str) -> None:
        """Adds a folder, which must hold an image if it is a class folder."""
        if not is_ignored(path):
            self._folders.add(path)

    def finish(self) -> None:
        """Sorts the images, and logs the files that are not images.

        Raises:
            DatasetError: there is no image.
        """
        if not self.images:
            raise DatasetError(f"{self.origin!r} holds no images: expected CLASS/IMAGE.jpg or the like")
        self.images.sort(key=lambda image: (natural_order(image.path), image.key))
        if self._others:
            first = min(self._others)
            _logger.warning(
                "ignored %d files in %s that are not images: %r, ...", len(self._others), self.origin, first
            )

    def unwrap(self) -> None:
        """Removes top folders that hold nothing but one folder, in which archives are often packed."""
        while self._is_wrapped:
            self.images = [Entry(image.path.split("/", 1)[1], image.key, image.member) for image in self.images]
            self._folders = {folder.partition("/")[2] for folder in self._folders}

    @property
    def _top_folders(self) -> set[str]:
        return {folder.partition("/")[0] for folder in self._folders} - {""}

    @property
    def _is_wrapped(self) -> bool:
        """Whether all images are in sub-folders of one top folder."""
        return len(self._top_folders) == 1 and all(image.path.count("/") > 1 for image in self.images)

    @property
    def is_flat(self) -> bool:
        """Whether no image is in a sub-folder."""
        return not any("/" in image.path for image in self.images)

    def classes(self) -> list[str]:
        """The class name of each image: its top folder.

        Raises:
            DatasetError: the top folders are not classes.
        """
        stray = next((image.path for image in self.images if "/" not in image.path), None)
        if stray is not None:
            raise DatasetError(
                f"{self.origin!r} holds images outside any class folder ({stray!r}): "
                "expected CLASS/IMAGE.jpg or the like"
            )
        names = [image.path.split("/", 1)[0] for image in self.images]
        if empty := sorted(self._top_folders - set(names), key=natural_order):
            raise DatasetError(
                f"the class folder {empty[0]!r} in {self.origin!r} holds no image that Pillow can decode: "
                "add its images, or remove it"
            )
        self._check_no_splits(set(names))
        return names

    def check_not_wrapped(self) -> None:
        """Raises DatasetError if there is one top folder, which holds the class folders."""
        if self._is_wrapped:
            self._raise_for_inner(sorted(self._top_folders))

    def _check_no_splits(self, names: set[str]) -> None:
        splits = sorted(name for name in names if name.lower() in _SPLITS)
        if len(splits) > 1:
            self._raise_for_inner(splits)

    def _raise_for_inner(self, names: Sequence[str]) -> NoReturn:
        shown, inner = " and ".join(map(repr, names)), f"{self.origin}/{names[0]}"
        raise DatasetError(f"{self.origin!r} holds {shown}, not class folders: give only one, e.g. {inner!r}")


def index_classes(names: Sequence[str], origin: str) -> tuple[list[int], list[str]]:
    """The class index of each name, and the class names in natural order.

    Raises:
        DatasetError: a name cannot be printed.
    """
    classes = sorted(set(names), key=natural_order)
    check_printable(classes, origin)
    indices = {name: index for index, name in enumerate(classes)}
    return [indices[name] for name in names], classes


def check_printable(names: Iterable[str], origin: str) -> None:
    """Raises DatasetError if a class name is empty or cannot be printed."""
    for name in names:
        if not name or not name.isprintable():
            raise DatasetError(f"{origin!r} has a class with the name {name!a}: expected a printable name")
