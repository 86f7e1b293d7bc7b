"""Image folders, as timm reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from timm.data.readers import create_reader

from kdkit.data.sources.base import checked_class_names, decode, in_order, unreadable
from kdkit.errors import DatasetError


class FolderSource:
    """A folder of class folders of images; a key is the path below the folder.

    Args:
        root: folder with one sub-folder a class.

    Raises:
        DatasetError: the folder does not exist or holds no image.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DatasetError(f"there is no image folder at {str(root)!r}: expected a folder with one folder a class")
        try:
            self._reader = create_reader("folder", root=str(root))
        except RuntimeError as error:
            raise DatasetError(
                f"the image folder {str(root)!r} holds no images: expected {root!s}/CLASS/IMAGE.jpg or the like"
            ) from error
        self.keys: Sequence[str] = [Path(name).as_posix() for name in self._reader.filenames()]
        self.class_names: Sequence[str] | None = checked_class_names(in_order(self._reader.class_to_idx), str(root))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        try:
            stream, target = self._reader[index]
        except OSError as error:
            raise unreadable(self.keys[index], str(self.root), error) from None
        return decode(stream, self.keys[index], str(self.root)), int(target)
