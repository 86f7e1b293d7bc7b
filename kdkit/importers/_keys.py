"""Which row of a file of arrays belongs to which image: by the keys that it names, or by its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kdkit.errors import DatasetError
from kdkit.importers._array_file import Array
from kdkit.importers._foreign import name_some, torchvision_order
from kdkit.runtime.reading import read_text

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
    return [str(text) for text in np.char.decode(texts, "utf-8")] if texts.dtype.kind == "S" else texts.tolist()


def match_rows(keys: Sequence[str], named: Sequence[str] | None, origin: str) -> list[int]:
    """Row of the arrays for each key of the dataset; without names they are in torchvision's order."""
    named = [keys[place] for place in torchvision_order(keys)] if named is None else named
    rows = {key: row for row, key in enumerate(named)}
    if len(rows) < len(named):
        twice = [key for row, key in enumerate(named) if rows[key] != row]
        raise DatasetError(f"{origin} names {name_some(twice)} twice: expected each key once")
    for lacking, what in (
        ([key for key in keys if key not in rows], "lacks"),
        (sorted(rows.keys() - set(keys)), "has labels for which there is no image:"),
    ):
        if lacking:
            raise DatasetError(
                f"{origin} {what} {len(lacking)} images ({name_some(lacking)}): the data has {len(keys)} images, "
                "keys are paths below its folder"
            )
    return [rows[key] for key in keys]
