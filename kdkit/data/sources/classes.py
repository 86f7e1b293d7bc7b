"""The images of some classes of another source, with labels of these classes alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from PIL import Image

from kdkit.bounds import shown
from kdkit.data.sources.base import ImageSource, describe, targets_of
from kdkit.data.sources.class_order import check_names
from kdkit.errors import ClassMismatchError, ConfigError, DatasetError, nearest

_SHOWN = 5


class ClassesSource:
    """The images of a source whose class is one of `class_names`; images of other classes are left out.

    The label of an image is its class's place in `class_names`; keys stay the source's. An image without a label has no
    class, so it stays, without a label.

    Args:
        source: the source.
        class_names: names of the classes to keep [C], in the order of the new labels.
        all_names: names of the source's classes, for a source of class indices that has no names itself.

    Raises:
        ConfigError: class_names is not a list of texts, or holds one twice.
        ClassMismatchError: the source has no such class, or two of that name.
        DatasetError: its labels are known only after loading, so that no class can be left out, or no image is left.
    """

    def __init__(self, source: ImageSource, class_names: Sequence[str], all_names: Sequence[str] | None = None) -> None:
        self.source = source
        self.class_names: Sequence[str] | None = check_names(class_names, error=ConfigError)
        targets = targets_of(source)
        if targets is None:
            raise DatasetError(
                f"the labels of {source!r} are known only after its images are loaded: no class of it can be left out"
            )
        names = source.class_names if source.class_names is not None else all_names
        places = self._places(names) if (targets >= 0).any() else {}
        self.rows = [row for row, target in enumerate(targets.tolist()) if target < 0 or target in places]
        self.targets: Sequence[int] = [places.get(int(targets[row]), -1) for row in self.rows]
        self.keys: Sequence[str] = [source.keys[row] for row in self.rows]
        if not self.rows:
            raise DatasetError(f"{source!r} has no image of the chosen classes: give images of these")

    def _places(self, names: Sequence[str] | None) -> dict[int, int]:
        """Class index in the source -> the new label, of the classes that are kept."""
        if names is None:
            raise ClassMismatchError(f"{self.source!r} does not name its classes: none can be chosen by name")
        chosen, names = self.class_names or (), [unicodedata.normalize("NFC", name) for name in names]
        if absent := [name for name in chosen if name not in set(names)]:
            more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
            listed = ", ".join(map(shown, absent[:_SHOWN]))
            raise ClassMismatchError(f"{self.source!r} has no class {listed}{more}{nearest(absent[0], names)}")
        if twice := [name for name in chosen if names.count(name) > 1]:
            raise ClassMismatchError(
                f"{self.source!r} has two classes {twice[0]!r}: none of them can be chosen by name"
            )
        return {names.index(name): place for place, name in enumerate(chosen)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.source[self.rows[index]][0], self.targets[index]

    def __repr__(self) -> str:
        return describe(self, repr(self.source))
