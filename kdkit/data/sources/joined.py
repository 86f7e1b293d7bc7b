"""Several sources as one: a mix of labelled and unlabelled folders, archives and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kdkit.data.sources.base import ImageSource, describe, targets_of
from kdkit.data.sources.checked import check_source, first_repeated
from kdkit.data.sources.left_out import skipped_of
from kdkit.data.sources.multi_label import num_labels_of
from kdkit.errors import ClassMismatchError, DatasetError, nearest


class JoinedSource:
    """The samples of several sources, one source after the other.

    The first source's keys stay as they are, so that a cache of it also serves it as a part of a mix; a key of another
    source follows the source's name and a slash. The classes are those of the first source that names any; the
    classes of others are found among them by name. A sample without a label stays without one.

    Args:
        sources: the sources, each with samples.
        names: a name for each of them, a path or an hfds/ name, of which the last part stands before its keys.

    Raises:
        DatasetError: two sources have the same name or two samples one key, only some sources name their classes, or
            one has several labels per image.
        ClassMismatchError: a source has a class that the first one does not have, or sources of different classes have
            two of one name.
    """

    def __init__(self, sources: Sequence[ImageSource], names: Sequence[str]) -> None:
        prefixes = _prefixes(names)
        for source, name in zip(sources, names, strict=True):
            check_source(source)
            if num_labels_of(source) is not None:
                raise DatasetError(f"{name!r} has several labels per image, which cannot be joined: write one table")
        self.sources = list(sources)
        self.keys: Sequence[str] = [
            f"{prefix}{key}" for source, prefix in zip(sources, prefixes, strict=True) for key in source.keys
        ]
        self.skipped = [
            f"{prefix}{text}" for source, prefix in zip(sources, prefixes, strict=True) for text in skipped_of(source)
        ]
        self._ends = np.cumsum([len(source) for source in sources]).tolist()
        self._check_distinct(names)
        self.class_names: Sequence[str] | None = next((s.class_names for s in sources if s.class_names), None)
        self._classes = [self._match(source, name) for source, name in zip(sources, names, strict=True)]
        known = [targets_of(source) for source in sources]
        self.targets: Sequence[int] | None = None
        if not any(targets is None for targets in known):
            pairs = zip(known, self._classes, strict=True)
            self.targets = [classes.get(t, t) for ts, classes in pairs if ts is not None for t in ts.tolist()]

    def _match(self, source: ImageSource, name: str) -> dict[int, int]:
        """Class index in a source -> class index here, where they differ."""
        if self.class_names is None:
            return {}
        if source.class_names is None:
            targets = targets_of(source)
            if targets is None or (targets >= 0).any():
                raise DatasetError(
                    f"{name!r} has class indices without names, and other data names its classes: give names in all"
                )
            return {}
        if list(source.class_names) == list(self.class_names):
            return {}
        for names in (self.class_names, source.class_names):
            if len(counted := Counter(names)) < len(names):
                raise ClassMismatchError(
                    f"two classes are called {counted.most_common(1)[0][0]!r}, so the classes of {name!r} cannot be "
                    "found by name: give each class one name"
                )
        places = {known: place for place, known in enumerate(self.class_names)}
        for own in source.class_names:
            if own not in places:
                raise ClassMismatchError(
                    f"{name!r} has the class {own!r}, which the first data with labels does not have"
                    f"{nearest(own, places)}: give it the same classes, or its images in a flat folder, without labels"
                )
        return {index: places[own] for index, own in enumerate(source.class_names) if places[own] != index}

    def _check_distinct(self, names: Sequence[str]) -> None:
        """Checks the keys: one of the first source, which nothing stands before, may begin with another's name."""
        if (rows := first_repeated(self.keys)) is None:
            return
        first, second = ((self.sources[number].keys[row], names[number]) for number, row in map(self.place_of, rows))
        raise DatasetError(
            f"two samples have the key {self.keys[rows[0]]!r}: {first[0]!r} of {first[1]!r}, and {second[0]!r} of "
            f"{second[1]!r}, whose name stands before its keys: rename that"
        )

    def place_of(self, row: int) -> tuple[int, int]:
        """The source of a row, and the row there."""
        row = range(len(self))[row]
        number = int(np.searchsorted(self._ends, row, side="right"))
        return number, row - (self._ends[number - 1] if number else 0)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        number, row = self.place_of(index)
        image, label = self.sources[number][row]
        return image, self._classes[number].get(label, label)

    def __repr__(self) -> str:
        return describe(self, ", ".join(map(repr, self.sources)))


def _prefixes(names: Sequence[str]) -> list[str]:
    """What stands before the keys of each source: nothing for the first, else its name and a slash."""
    last = [Path(name).resolve().name for name in names]  # of hfds/NAME, too
    for name, count in Counter(last[1:]).items():
        if count > 1:
            raise DatasetError(f"two of the data are called {name!r}, which stands before their keys: rename one")
    if len({Path(name).resolve() for name in names}) < len(names):
        raise DatasetError(f"the same data is given twice, {', '.join(names)}: give it once")
    return ["", *(f"{name}/" for name in last[1:])]
