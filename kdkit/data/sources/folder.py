"""Image folders: class folders, or a flat folder of unlabelled images; listing.index_classes sets the class order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from kdkit.data.sources.base import Columns, ImageSource, describe
from kdkit.data.sources.image import decode_file, is_image
from kdkit.data.sources.listing import Listing, index_classes, is_ignored
from kdkit.errors import DatasetError


class FolderSource:
    """A folder of class folders of images; a key is the path below the folder.

    The class is the top folder, however deep an image is below it. Hidden files are ignored. A folder in which no
    sub-folder holds an image is flat: its images have no labels (target -1), and `class_names` is None.

    Args:
        root: folder with one sub-folder per class, or a flat folder of unlabelled images.

    Raises:
        DatasetError: the folder does not exist, holds no image, or its sub-folders are not classes.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DatasetError(f"there is no image folder at {str(root)!r}: expected one with one folder per class")
        listing = Listing(str(root))
        _walk(listing, self.root, "", ())
        listing.finish()
        self.keys: Sequence[str] = [image.key for image in listing.images]
        self.class_names: Sequence[str] | None = None
        self.targets = [-1] * len(self.keys)
        if not listing.is_flat:
            listing.check_not_wrapped()
            self.targets, self.class_names = index_classes(listing.classes(), str(root))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        key = self.keys[index]
        return decode_file(self.root / key, key, str(self.root)), self.targets[index]

    def __repr__(self) -> str:
        return describe(self, repr(str(self.root)))


def create(name: str, columns: Columns) -> ImageSource:
    """Tried last: anything else is treated as a folder."""
    columns.check_unused("an image folder")
    return FolderSource(name)


def _walk(listing: Listing, folder: Path, below: str, above: tuple[tuple[int, int], ...]) -> None:
    """Adds the contents of `folder`, which is `below` the root; follows symlinks."""
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"the folder {str(folder)!r} cannot be listed: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise DatasetError(f"the folder {str(folder)!r} is a symlink to a folder that contains it: remove the symlink")
    for entry in entries:
        path = f"{below}{entry.name}"
        if is_ignored(entry.name):
            continue
        if entry.is_dir():
            listing.add_folder(path)
            _walk(listing, Path(entry.path), f"{path}/", (*above, here))
        else:
            if entry.is_symlink() and not is_image(entry.name) and not Path(entry.path).exists():
                raise DatasetError(f"{path!r} in {listing.origin!r} is a dangling symlink: fix or remove it")
            listing.add_file(path)
