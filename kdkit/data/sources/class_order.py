"""The order of classes: one for every kind of data, process and rank."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from kdkit.data.sources.listing import natural_order
from kdkit.errors import DatasetError, KdkitError

_logger = logging.getLogger(__name__)


def index_classes(names: Sequence[str], origin: str) -> tuple[list[int], list[str]]:
    """The class index of each name, and the class names in natural order.

    Class names are in Unicode's composed form (NFC), so a name that another system wrote in the decomposed form is the
    same class.

    Raises:
        DatasetError: a name cannot be printed, or two differ only in the blanks around them.
    """
    composed = {name: unicodedata.normalize("NFC", name) for name in set(names)}
    classes = sorted(set(composed.values()), key=natural_order)
    check_printable(classes, origin)
    if len(composed) > len(classes):
        spelt = Counter(composed.values())
        twice = next(name for name in classes if spelt[name] > 1)
        _logger.warning("%r: the class %r is written in two forms of Unicode, which are one class", origin, twice)
    lower: dict[str, str] = {}
    for name in classes:
        if len(name) > 1 and (other := lower.setdefault(name.casefold(), name)) != name:  # A and a are letters
            _logger.warning(
                "%r: the classes %r and %r differ only in case, and are taken for two classes", origin, other, name
            )
            break
    bare: dict[str, str] = {}
    for name in classes:
        if (other := bare.setdefault(name.strip(), name)) != name:
            raise DatasetError(f"{origin!r} has the classes {other!r} and {name!r}: remove the blanks around the names")
    indices = {name: index for index, name in enumerate(classes)}
    return [indices[composed[name]] for name in names], classes


def check_texts(values: object, what: str, error: type[KdkitError] = DatasetError) -> list[str]:
    """The texts that a caller gives, one for each class or sample, as a list; `what` names them in the error.

    Raises:
        error: they are no texts, or have no order: a set has another one in each process, a mapping one of its own.
    """
    if isinstance(values, Iterable) and not isinstance(values, (str, Mapping, Set)):
        found: list[Any] = list(values)
        if all(isinstance(value, str) for value in found):
            return found
    raise error(f"{what} must be a list of texts, got {values!r:.80}")


def check_names(names: object, what: str = "class_names", error: type[KdkitError] = DatasetError) -> list[str]:
    """The class names that a caller gives, in Unicode's composed form (NFC), in which those of all data are.

    Raises:
        error: they are no list of texts, are empty, or hold a name twice.
    """
    found = [unicodedata.normalize("NFC", name) for name in check_texts(names, what, error)]
    if not found:
        raise error(f"{what} must name each class, got {names!r:.80}")
    if len(counted := Counter(found)) < len(found):
        raise error(f"{what} must have each class once, got {counted.most_common(1)[0][0]!r} more than once")
    return found


def check_printable(names: Iterable[str], origin: str) -> None:
    """Raises DatasetError if a class name is empty or cannot be printed."""
    for name in names:
        if not name.strip() or not name.isprintable():
            raise DatasetError(f"{origin!r} has a class with the name {name!a}: expected a printable name")
