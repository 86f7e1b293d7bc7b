"""Map the labels of a table or of shards to class indices."""

from __future__ import annotations

import re
from collections.abc import Sequence

from PIL import Image

from kdkit.data.sources.base import ImageSource
from kdkit.data.sources.listing import index_classes
from kdkit.errors import DatasetError

_INDEX = re.compile(r"0|[1-9]\d*|-1", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def index_labels(labels: Sequence[object], keys: Sequence[str], origin: str) -> tuple[list[int], list[str] | None]:
    """The class index of each label, and the class names if labels are names.

    Whole numbers are class indices; other strings are class names, in natural order. An empty label, None and -1 mean
    that the sample has no label: -1.

    Args:
        labels: whole numbers or strings, one per sample.
        keys: of the samples, for messages.
        origin: where the labels come from, for messages.

    Raises:
        DatasetError: a label is neither an index nor a name, or some are numbers and others names; the error
            names the sample.
    """
    texts = ["" if label is None else str(label).strip() for label in labels]
    for label, key in zip(labels, keys, strict=True):
        if label is not None and (isinstance(label, bool) or not isinstance(label, (int, str))):
            raise _neither(label, key, origin)
    is_index = [_INDEX.fullmatch(text) is not None for text in texts]
    first_name = next((place for place, text in enumerate(texts) if text and not is_index[place]), None)
    if first_name is None:
        return [int(text) if text else -1 for text in texts], None
    first_index = next((place for place, found in enumerate(is_index) if found), None)
    if first_index is not None or _NUMBER.fullmatch(texts[first_name]):
        other = "" if first_index is None else f", that of {keys[first_index]!r} is {texts[first_index]!r}"
        raise _neither(texts[first_name], keys[first_name], f"{origin}{other}")
    indices, names = index_classes([text for text in texts if text], origin)
    found = iter(indices)
    return [next(found) if text else -1 for text in texts], names


def _neither(label: object, key: str, origin: str) -> DatasetError:
    return DatasetError(
        f"the label of {key!r} in {origin} is {label!r}: expected whole numbers from 0 (-1 for no label) for all "
        "samples, or names for all"
    )


class Unlabelled:
    """The images of a source without their labels: every target is -1.

    Args:
        source: where the images come from.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.keys: Sequence[str] = source.keys
        self.class_names: Sequence[str] | None = None
        self.targets: Sequence[int] = [-1] * len(source.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.source[index][0], -1
