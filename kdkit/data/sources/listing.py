"""Rules that turn file paths into images and classes, and the order of both.

Image folders, zip files and tar files follow the same rules:

- an image is a file with the suffix of a format that Pillow decodes;
- hidden files and folders, and files that operating systems leave behind, are ignored;
- the class is the top folder, however deep the image is below it, as in torchvision;
- top folders that are the splits or copies of a dataset (train, val) or one folder around all classes are not classes;
- images and classes are in natural order, in which 2 precedes 10; ties are broken by the exact name, so the order is
  the same in every process;
- nothing is dropped silently: an empty class folder, a dangling symlink and an image that cannot be decoded are errors,
  unless `skip_missing` skips them; files that are not images are counted in a warning.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from kdkit.data.sources.base import SourceOptions
from kdkit.data.sources.class_folders import check_class_folders, raise_for_inner
from kdkit.data.sources.image import UNSUPPORTED_SUFFIXES, is_image, suffix_of
from kdkit.data.sources.left_out import LeftOut
from kdkit.errors import DatasetError

_LEFT_BEHIND = {
    "__MACOSX",
    "Thumbs.db",
    "desktop.ini",
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
}
_MAX_DIGITS = 4000
"""Digits of a number that count in the natural order; Python converts no more than 4,300."""


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sort key of paths and class names: numbers by value, case ignored, ties broken by the exact name.

    timm's `natural_key` has ties: A and a, or 1 and 01, could sort differently in another process.
    """
    parts = re.split(r"(\d+)", name.lower())
    return [int(part[:_MAX_DIGITS]) if place % 2 else part for place, part in enumerate(parts)], name


def is_ignored(path: str) -> bool:
    """Whether a path is hidden or left behind by an operating system, or is in such a folder."""
    return any(part.startswith(".") or part in _LEFT_BEHIND for part in path.split("/"))


def inner_path(name: str, origin: str) -> str:
    """The path of an archive's member below the top of the archive; "." is the top itself.

    Raises:
        DatasetError: the name leads out of the archive.
    """
    if name[:1] not in ("/", ".", "") and "/." not in name and "//" not in name and name[-1] != "/":
        return name  # nearly all of a million
    parts = [part for part in name.split("/") if part and part != "."]
    if name.startswith("/") or ".." in parts:
        raise DatasetError(
            f"{name!r} in {origin!r} leads out of the archive: pack the images below the folder that holds the classes"
        )
    return "/".join(parts) or "."


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
        options: whether labels come from elsewhere, and whether images that are missing are skipped.
        left_out: what is not listed; a new account by default.
    """

    def __init__(self, origin: str, options: SourceOptions, left_out: LeftOut | None = None) -> None:
        self.origin = origin
        self.images: list[Entry] = []
        self.left_out = LeftOut(origin, options.skip_missing) if left_out is None else left_out
        self._rule = options.labels
        self._folders: set[str] = set()

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
            self.left_out.miss(
                f"Pillow cannot decode {path!r} in {self.origin!r}", "convert it, e.g. to PNG, or move it elsewhere"
            )
        else:
            self.left_out.count(path)

    def add_folder(self, path: str) -> None:
        """Adds a folder, which must hold an image if it is a class folder."""
        if path != "." and not is_ignored(path):
            self._folders.add(path)

    def add_link(self, path: str, kind: str) -> None:
        """Adds a link of an archive, whose target cannot be read through it.

        Raises:
            DatasetError: always, unless the link is hidden or such entries are skipped.
        """
        if not is_ignored(path):
            self.left_out.miss(f"{path!r} in the {kind} {self.origin!r} is a link", "pack its target instead")

    def finish(self) -> None:
        """Sorts the images.

        Raises:
            DatasetError: there is no image, or one path is listed twice.
        """
        if not self.images:
            raise DatasetError(
                f"{self.origin!r} holds no images{self.left_out.but()}: expected CLASS/IMAGE.jpg or the like"
            )
        self.images.sort(key=lambda image: (natural_order(image.path), image.key))
        for one, other in zip(self.images, self.images[1:], strict=False):
            if one.path == other.path:
                raise DatasetError(f"{self.origin!r} holds {one.path!r} twice: expected one file of a name")

    def unwrap(self) -> None:
        """Removes top folders that hold nothing but one folder, in which archives are often packed."""
        while self.is_wrapped and self._rule is None:
            self.remove_top_folder()

    def remove_top_folder(self) -> None:
        """Takes the first folder off every path."""
        self.images = [Entry(image.path.partition("/")[2], image.key, image.member) for image in self.images]
        self._folders = {folder.partition("/")[2] for folder in self._folders}

    @property
    def top_folders(self) -> set[str]:
        """Names of the top folders."""
        return {folder.partition("/")[0] for folder in self._folders} - {""}

    @property
    def is_wrapped(self) -> bool:
        """Whether all images are in sub-folders of one top folder."""
        return len(self.top_folders) == 1 and all(image.path.count("/") > 1 for image in self.images)

    @property
    def is_flat(self) -> bool:
        """Whether no image is in a sub-folder."""
        return not any("/" in image.path for image in self.images)

    def classes(self, elsewhere: Collection[str] | None = None) -> list[str]:
        """The class name of each image: its top folder.

        Args:
            elsewhere: top folders of all tars of the same data that hold images, so they may be empty here; whether
                they are classes, only all tars together show.

        Raises:
            DatasetError: the top folders are not classes.
        """
        stray = next((image.path for image in self.images if "/" not in image.path), None)
        if stray is not None:
            raise DatasetError(
                f"{self.origin!r} holds images outside any class folder ({stray!r}): expected CLASS/IMAGE.jpg or the "
                "like; --labels none takes all images without labels"
            )
        names = [image.path.split("/", 1)[0] for image in self.images]
        for empty in sorted(self.top_folders - {*names, *(elsewhere or ())}, key=natural_order):
            self.left_out.miss(
                f"the class folder {empty!r} in {self.origin!r} holds no image that Pillow can decode",
                "add its images, or remove it",
            )
        if self._rule is None and elsewhere is None:
            check_class_folders((image.path for image in self.images), self.origin)
        return names

    def check_not_wrapped(self) -> None:
        """Raises DatasetError if there is one top folder, which holds the class folders."""
        if self.is_wrapped and self._rule is None:
            raise_for_inner(sorted(self.top_folders), self.origin)
