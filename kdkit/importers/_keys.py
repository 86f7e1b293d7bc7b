"""Which row of a file of arrays belongs to which image: by the keys that it names, or by its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdkit.data import FolderSource, TarSource, ZipSource
from kdkit.errors import DatasetError
from kdkit.importers._array_file import Array
from kdkit.importers._foreign import name_some, torchvision_order
from kdkit.runtime.reading import read_text
from kdkit.teachers.class_map import composed

_MAX_KEYS_BYTES = 1 << 30


def read_keys(arrays: Mapping[str, Array], keys_file: str | Path | None) -> Sequence[str] | None:
    """Keys of the rows; None if nothing names them."""
    if keys_file is not None:
        return read_text(keys_file, limit=_MAX_KEYS_BYTES, error=DatasetError).splitlines()
    return read_texts(arrays, "keys")


def read_texts(arrays: Mapping[str, Array], name: str) -> list[str] | None:
    """The texts of an array; None if there is no such array."""
    if (texts := arrays.get(name)) is None:
        return None
    if texts.ndim != 1 or texts.dtype.kind not in "US":
        raise DatasetError(f"{name} are {texts.dtype} {list(texts.shape)}, expected a list of texts")
    try:
        return [str(text) for text in np.char.decode(texts, "utf-8")] if texts.dtype.kind == "S" else texts.tolist()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{name} are bytes that are not UTF-8 ({error}): expected texts") from error


def order_of_rows(images: Any) -> list[int]:
    """Dataset row of each row of arrays that nothing names: torchvision's order of files, other data's own order."""
    plain = images
    while hasattr(plain, "source"):  # of a selection, or of several labels per image
        plain = plain.source
    if isinstance(plain, (FolderSource, ZipSource, TarSource)):
        return torchvision_order(images.keys)
    return list(range(len(images.keys)))


def match_rows(keys: Sequence[str], named: Sequence[str] | None, order: Sequence[int] | None, origin: str) -> list[int]:
    """Row of the arrays for each key of the dataset.

    Args:
        keys: of the dataset.
        named: of the rows; None if nothing names them.
        order: dataset row of each row of the arrays where nothing names them; None for the same.
        origin: the arrays, for errors.

    Raises:
        DatasetError: a key is named twice, or there is none for an image, or no image for it.
    """
    named = [keys[place] for place in order or range(len(keys))] if named is None else named
    if not set(keys) <= set(named):  # perhaps in another form of Unicode
        keys, named = composed(keys), composed(named)
    rows = {key: row for row, key in enumerate(named)}
    if len(rows) < len(named):
        twice = [key for row, key in enumerate(named) if rows[key] != row]
        raise DatasetError(f"{origin} names {name_some(twice)} twice: expected each key once")
    theirs = f", and the first row's is {named[0]!r}" if named else ""
    for lacking, what in (
        ([key for key in keys if key not in rows], "lacks"),
        (sorted(rows.keys() - set(keys)), "has labels for which there is no image:"),
    ):
        if lacking:
            raise DatasetError(
                f"{origin} {what} {len(lacking)} images ({name_some(lacking)}): the data has {len(keys)} images, "
                f"keys are paths below its folder{theirs}"
            )
    return [rows[key] for key in keys]
