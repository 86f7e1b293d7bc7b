"""Checks of the values that a caller gives a cache, and their plain form: whole numbers, texts and strict JSON."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdkit.cache.codecs import Codec, FeatureCodec, RowCodec
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.format.json import parse_json
from kdkit.errors import CacheCorruptError, ConfigError

_MAX_LISTED, _MAX_TEXT = 1000, 300


def whole_number(name: str, value: Any, unit: str = "") -> int:
    """`value` as an int of at least 1, also from a NumPy integer; `unit` follows the 1 in errors.

    Raises:
        ConfigError: it is not a whole number, or less than 1; names the field.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name} must be a whole number, got {_show(value)}")
    if number < 1:
        raise ConfigError(f"{name} must be at least 1{unit}, got {number}")
    return number


def flag(name: str, value: Any) -> bool:
    """`value` as a bool, also from NumPy's.

    Raises:
        ConfigError: it is neither True nor False; names the field.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name} must be True or False, got {_show(value)}")
    return bool(value)


def texts(name: str, values: Any, of: str) -> Sequence[str]:
    """`values` as a sequence of texts, the same object where it is one; an array becomes a list.

    Raises:
        ConfigError: it is not a sequence, a single text, or holds an element that cannot be stored as text; names both.
    """
    if isinstance(values, str):
        raise ConfigError(f"{name} must be a sequence of {of}, got the single text {values[:80]!r}")
    listed = values.tolist() if hasattr(values, "tolist") else values
    ordered = hasattr(listed, "__len__") and hasattr(listed, "__getitem__")
    if not ordered or isinstance(listed, (bytes, bytearray, Mapping)):
        raise ConfigError(f"{name} must be a sequence of {of}, such as a list, got {_show(values)}")
    for place, text in enumerate(listed):
        if not isinstance(text, str):
            raise ConfigError(f"{name}[{place}] must be a text, got {_show(text)}")
        if not text.isascii() and not _is_storable(text):
            raise ConfigError(f"{name}[{place}] must be a text that UTF-8 can hold, got {_show(text)}")
    found: Sequence[str] = listed
    return found


def document(name: str, value: Any, *, finite: bool = True) -> dict[str, Any]:
    """A mapping as the plain JSON object that a cache would give back: tuples as lists, numbers of NumPy as Python's.

    Args:
        name: the field, for errors.
        value: the mapping.
        finite: whether NaN and infinities are refused, which JSON does not have and which equal nothing.

    Raises:
        ConfigError: it is not a mapping, or holds a value that JSON does not have; names the field.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a mapping of names to plain values, got {_show(value)}")
    try:
        text = json.dumps(dict(value), allow_nan=not finite, default=_plain, ensure_ascii=False)
        text.encode()
        plain: dict[str, Any] = parse_json(text, name)
    except (TypeError, ValueError, RecursionError, CacheCorruptError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{name} must hold plain JSON values only: {reason}") from None
    return plain


def _plain(value: Any) -> Any:
    """What JSON writes for a value that it does not know."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"got {_show(value)}")


def _is_storable(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")  # a file name that is not UTF-8 is a key too
    except UnicodeEncodeError:
        return False
    return True


def _show(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:80] + "..."


def check_codecs(codecs: Any) -> None:
    """Raises ConfigError unless these are codecs by stream: of logits a Codec, of any other a FeatureCodec."""
    if not isinstance(codecs, Mapping) or not codecs:
        raise ConfigError(
            f'codecs must name at least one stream, e.g. {{"logits": create_codec("float16", 1000)}}, got {codecs!r}'
        )
    for stream, codec in codecs.items():
        expected = Codec if stream == LOGITS else FeatureCodec
        if not isinstance(stream, str):
            raise ConfigError(f"codecs must have the names of streams as keys, got {stream!r}")
        if not isinstance(codec, expected):
            raise ConfigError(f"codecs[{stream!r}] must be a {expected.__name__}, got {codec!r}")


def check_class_names(names: Sequence[str] | None, logits: RowCodec | None, *, names_classes: bool) -> None:
    """Raises ConfigError unless each name occurs once, and if they are those of the logits, one for each class."""
    if names is None:
        return
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ConfigError(f"class_names must have each name once, got {twice[:80]!r} more than once")
    if names_classes and isinstance(logits, Codec) and len(names) != logits.num_classes:
        raise ConfigError(
            f"class_names must have one name for each of the {logits.num_classes} classes of the logits' codec, "
            f"got {len(names)}; leave them out, or set names_classes=False if they are those of the images alone"
        )


def bounded(values: Sequence[str]) -> dict[str, Any]:
    """A list of any length as the metadata holds it: its "count", and the "first" 1,000 texts of 300 characters."""
    shown = [text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..." for text in values[:_MAX_LISTED]]
    return {"count": len(values), "first": shown}
