"""Map the labels of data to class indices: one rule for every kind of data.

A whole number from 0 is a class index. -1, None and an empty text mean that the sample has no label: -1. In a table or
in shards a text may also be the name of a class. Everything else is an error that names the sample: a number with a
fraction would become another class, and a text like "nan" the name of one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdkit.data.sources.base import Targets
from kdkit.data.sources.class_order import index_classes
from kdkit.errors import LabelError

_logger = logging.getLogger(__name__)
_INDEX = re.compile(r"0|[1-9]\d*|-1", re.ASCII)
_PADDED = re.compile(r"0+(\d{1,9})", re.ASCII)
_SEPARATORS = ("|", ";")
"""Marks between several labels in one text; a comma is part of many class names, such as ImageNet's."""
_NUMBERS = r"[-+]?\d+(\.\d+)?((\s*[,;|]\s*|\s+)[-+]?\d+(\.\d+)?)"
_LIST = re.compile(
    rf"(?!\d{{1,3}}(,\d{{3}})+$){_NUMBERS}+"  # but one number, with commas between thousands
    rf"|[\[(]\s*({_NUMBERS}*|[\"'].*[\"']),?\s*[\])]|\[.*,.*\]",
    re.ASCII,
)
"""Several numbers, or a list in brackets as JSON and Python write it."""
MISSING = frozenset({"nan", "none", "null", "na", "n/a", "nat", "<na>", "#n/a", "-nan"})
"""Texts that programs write for a value that is missing; a class may be called `none` in lower case."""
_MAX_INDEX = 2**31 - 1
_MARKERS = {np.dtype(kind): int(np.iinfo(kind).max) for kind in (np.uint8, np.uint16)}
"""Unsigned dtype -> its largest number, which is -1 there, and a common mark for pixels without a class."""


def class_index(label: Any, key: str, origin: str, num_classes: int | None = None) -> int:
    """The class index that one label is; -1 for no label.

    Args:
        label: None, or a whole number: Python's, NumPy's or torch's, also as an array of one element.
        key: of the sample, for the message.
        origin: where the label comes from, for the message.
        num_classes: number of classes; None if it is unknown.

    Raises:
        LabelError: it is not a whole number, e.g. a float, a bool or several numbers, or there is no such class, or it
            may be -1 in an unsigned dtype.
    """
    if label is None:
        return -1
    value = label
    if hasattr(label, "dtype") and hasattr(label, "reshape"):  # of NumPy, or of torch on any device
        array = np.asarray(label.detach().cpu() if hasattr(label, "detach") else label)
        value = array.item() if array.size == 1 and array.dtype.kind not in "mM" else label
        if num_classes is None and array.dtype in _MARKERS and value == _MARKERS[array.dtype]:
            raise LabelError(
                f"the label of {key!r} in {origin} is {value}, the largest {array.dtype}, and may mean no label: give "
                "-1 for no label, or labels as int64 if it is a class"
            )
    if isinstance(value, (list, tuple)) or (hasattr(value, "ndim") and value.ndim == 1):
        raise LabelError(
            f"the label of {key!r} in {origin} is a vector of {len(value)} numbers, expected a class index: for "
            "several labels per image, open the data as kdkit.data.MultiLabelSource(DATA)"
        )
    if isinstance(value, (bool, np.timedelta64)) or not isinstance(value, (int, np.integer)):  # a time is no number
        raise LabelError(
            f"the label of {key!r} in {origin} is {_shown(value)}: expected a whole number from 0, or -1 or None for "
            "no label; numbers with a fraction, as for regression, are not supported"
        )
    if not -1 <= value <= (_MAX_INDEX if num_classes is None else num_classes - 1):
        raise _out_of_range(key, int(value), num_classes)
    return int(value)


def check_range(targets: Targets, num_classes: int | None, keys: Sequence[str], origin: str = "") -> None:
    """Compares class indices [N] with the number of classes.

    Args:
        targets: class indices, -1 for no label.
        num_classes: number of classes; None if it is unknown.
        keys: of the samples, for the message.
        origin: where the labels come from, for the message, if it says more than the keys.

    Raises:
        LabelError: an index is below -1, or there is no such class; names the first sample.
    """
    odd = (targets < -1) | (targets > (_MAX_INDEX if num_classes is None else num_classes - 1))
    if odd.any():
        row = int(odd.argmax())
        raise _out_of_range(keys[row], int(targets[row]), num_classes, origin)


def tell_counted_from_one(targets: Targets, origin: str) -> None:
    """Logs a warning if class indices [N] that have no names may be counted from 1: all from 1 on, and no 0."""
    found = np.unique(targets[targets >= 0])
    if len(found) > 1 and found[0] == 1 and found[-1] == len(found):
        _logger.warning(
            "%s: the labels are 1 to %d, and class indices begin with 0: subtract 1 if these are counted from 1",
            *(origin, len(found)),
        )


def _out_of_range(key: str, label: int, num_classes: int | None, origin: str = "") -> LabelError:
    known = "whole numbers from 0" if num_classes is None else f"0 to {num_classes - 1}"
    place = f" in {origin!r}" if origin else ""
    return LabelError(f"the label of {key!r}{place} is {label}: expected {known}, or -1 for no label")


def index_labels(labels: Sequence[object], keys: Sequence[str], origin: str) -> tuple[list[int], list[str] | None]:
    """The class index of each label, and the class names if labels are names.

    Whole numbers are class indices; other strings are class names, in natural order, without the blanks around them. An
    empty label, None and -1 mean that the sample has no label: -1. A bool is the name False or True, as a CSV has it.

    Args:
        labels: whole numbers, strings or bools, one per sample.
        keys: of the samples, for messages.
        origin: where the labels come from, for messages.

    Raises:
        LabelError: a label is neither an index nor a name, or is a list of them, or some are numbers and others
            names; the error names the sample.
    """
    texts: list[str] = []
    for given, key in zip(labels, keys, strict=True):
        label = class_index(given, key, origin) if isinstance(given, np.integer) else given
        if label is not None and not isinstance(label, (int, str)):
            raise _neither(label, key, origin)
        texts.append("" if label is None else str(label).strip())
    index: int | None = None  # place of the first sample whose label is a class index, and of the first with a name
    name: int | None = None
    for place, text in enumerate(texts):
        if _is_index(text):
            index = place if index is None else index
        elif text:
            _check_name(text, keys[place], origin)
            name = place if name is None else name
    if name is None:
        return [int(text) if text else -1 for text in texts], None
    if index is not None:
        raise _neither(texts[name], keys[name], f"{origin}, that of {keys[index]!r} is {texts[index]!r},")
    indices, names = index_classes([text for text in texts if text], origin)
    check_single(names, origin)
    found = iter(indices)
    return [next(found) if text else -1 for text in texts], names


def _check_name(text: str, key: str, origin: str) -> None:
    """Raises LabelError if a text is a number, several, or what programs write for a missing value: no class's name."""
    if _LIST.fullmatch(text):
        raise LabelError(
            f"the label of {key!r} in {origin} is {_shown(text)}, expected one class: give several labels per "
            "image in a table, --label-column 'NAME[,]' with its separator, or as kdkit.data.MultiLabelSource"
        )
    if padded := _PADDED.fullmatch(text):
        raise LabelError(
            f"the label of {key!r} in {origin} is {text!r}, which may mean the class index {int(padded[1])} or a name: "
            "write indices without zeros before them, or names such as 'c01'"
        )
    if re.fullmatch(r"[1-9]\d*", text, re.ASCII):
        raise LabelError(
            f"the label of {key!r} in {origin} is {_shown(text)}, beyond {_MAX_INDEX:,}, the last class index: "
            "write whole numbers from 0, or names such as 'c1'"
        )
    if text != "none" and text.lower() in MISSING:
        raise LabelError(
            f"the label of {key!r} in {origin} is {text!r}, which programs write for a missing value: leave it empty "
            "for no label, or give the class another name"
        )
    if _is_number(text):
        raise _neither(text, key, origin)


def check_single(names: Sequence[str], origin: str, separator: str = "") -> None:
    """Checks that no class name is a list of others; logs a warning if one may be.

    Args:
        names: the class names.
        origin: where they come from, for messages.
        separator: the one that is given and has been applied, if any.

    Raises:
        LabelError: a part of a name, between the usual separators, is a name by itself.
    """
    known = set(names)
    for mark in (mark for mark in _SEPARATORS if mark != separator.strip()):
        for name in names:
            parts = [part.strip() for part in name.split(mark)]
            if len(parts) > 1 and not known.isdisjoint(parts):
                raise LabelError(
                    f"{origin} has the label {name!r}, and a part of it as a label by itself: for several labels per "
                    f"image give the separator, --label-column 'NAME[{mark}]' of a table, or write names without it"
                )
            if len(parts) > 1 and all(parts):
                _logger.warning(
                    "%s: the label %r is taken for one class; if it is several, give the separator: "
                    "--label-column 'NAME[%s]' of a table",
                    origin,
                    name,
                    mark,
                )
                return


def _is_index(text: str) -> bool:
    return _INDEX.fullmatch(text) is not None and len(text) < 11 and int(text) <= _MAX_INDEX


def _is_number(text: str) -> bool:
    """Whether Python, and so a reader of tables, takes a text for a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(label: Any) -> str:
    """A label and its type, on one short line."""
    shown = " ".join(repr(label).split())
    return f"{shown[:60]}{'...' if len(shown) > 60 else ''} ({type(label).__name__})"


def _neither(label: object, key: str, origin: str) -> LabelError:
    return LabelError(
        f"the label of {key!r} in {origin} is {_shown(label)}: expected whole numbers from 0 (-1 or nothing for no "
        "label) for all samples, or names for all"
    )
