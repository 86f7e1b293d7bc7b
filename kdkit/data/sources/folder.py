"""Image folders: class folders, or a flat folder of unlabelled images; class_order.py has the order of classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from kdkit.data.sources.base import ImageSource, LabelRule, SourceOptions, describe
from kdkit.data.sources.class_order import index_classes
from kdkit.data.sources.hfds import is_saved
from kdkit.data.sources.image import decode_file
from kdkit.data.sources.listing import Listing, is_ignored
from kdkit.errors import DatasetError

_Identity = tuple[int, int]
"""Device and inode of a folder."""


class FolderSource:
    """A folder of class folders of images; a key is the path below the folder.

    The class is the top folder, however deep an image is below it. Hidden files are ignored. A folder in which no
    sub-folder holds an image is flat: its images have no labels (target -1), and `class_names` is None.

    Args:
        root: folder with one sub-folder per class, or a flat folder of unlabelled images.
        labels: "folder" takes the top folders as classes even if they look like the splits of a dataset or hold all
            classes together; "none" takes every image below `root` without a label.
        skip_missing: skips what should hold an image and does not; see `kdkit.data.create_source`.

    Attributes:
        skipped: one text for each entry that was skipped.

    Raises:
        DatasetError: the folder does not exist, holds no image, or its sub-folders are not classes.
    """

    def __init__(self, root: str | Path, *, labels: LabelRule | None = None, skip_missing: bool = False) -> None:
        self.root = Path(root)
        options = SourceOptions(labels=labels, skip_missing=skip_missing)
        options.check_rule("an image folder", "folder")
        if self.root.is_file():
            raise DatasetError(
                f"the data {str(root)!r} is a file of no kind that kdkit reads: expected a folder of class folders, a "
                ".tar or .zip of them, or a .csv, .tsv or .parquet of paths and labels"
            )
        if not self.root.is_dir():
            raise DatasetError(f"there is no image folder at {str(root)!r}: expected one with one folder per class")
        listing = Listing(str(root), options)
        _walk(listing, str(self.root))
        listing.finish()
        self.keys: Sequence[str] = [image.key for image in listing.images]
        self.class_names: Sequence[str] | None = None
        self.targets = [-1] * len(self.keys)
        if labels == "folder" or (labels is None and not listing.is_flat):
            listing.check_not_wrapped()
            self.targets, self.class_names = index_classes(listing.classes(), str(root))
        self.skipped: Sequence[str] = listing.left_out.skipped
        listing.left_out.log()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        key = self.keys[index]
        root = str(self.root)
        return decode_file(f"{root}/{key}", key, root), self.targets[index]  # joining Paths takes 0.03 ms

    def __repr__(self) -> str:
        return describe(self, repr(str(self.root)))


def create(name: str, options: SourceOptions) -> ImageSource:
    """Tried last: anything else is treated as a folder."""
    if is_saved(Path(name)):
        raise DatasetError(f"{name!r} was written by save_to_disk of the package datasets: give it as hfds/{name}")
    options.check_no_columns("an image folder")
    return FolderSource(name, labels=options.labels, skip_missing=options.skip_missing)


def _walk(listing: Listing, root: str) -> None:
    """Adds the contents of a folder and of all folders below it; follows symlinks."""
    pending: list[tuple[str, tuple[_Identity, ...]]] = [("", ())]
    while pending:
        below, above = pending.pop()
        try:
            here, entries = _scan(Path(root, below))
        except OSError as error:
            if not below:
                raise DatasetError(f"the folder {root!r} cannot be listed: {error.strerror}") from error
            _miss(listing, below.rstrip("/"), f"cannot be listed ({error.strerror})", "make it readable")
            continue
        if here in above:
            _miss(listing, below.rstrip("/"), "is a symlink to a folder that contains it", "remove the symlink")
            continue
        for entry in entries:
            path = f"{below}{entry.name}"
            if is_ignored(entry.name):
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError as error:  # of symlinks to themselves, or into a folder without permission
                _miss(listing, path, f"cannot be followed ({error.strerror})", "fix the symlink")
                continue
            if is_folder:
                listing.add_folder(path)
                pending.append((f"{path}/", (*above, here)))
            elif is_file:
                listing.add_file(path)
            elif entry.is_symlink():
                _miss(listing, path, "is a dangling symlink", "fix or remove it")
            else:
                _miss(listing, path, "is neither a file nor a folder", "remove it")


def _miss(listing: Listing, path: str, reason: str, remedy: str) -> None:
    listing.left_out.miss(f"{path!r} in {listing.origin!r} {reason}", remedy)


def _scan(folder: Path) -> tuple[_Identity, list[os.DirEntry[str]]]:
    """The identity of a folder, and its entries."""
    status = folder.stat()
    with os.scandir(folder) as entries:
        return (status.st_dev, status.st_ino), list(entries)
