"""Whether top folders are classes, or the splits, pieces or copies of a dataset whose classes are below them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NoReturn

from kdkit.errors import DatasetError

_logger = logging.getLogger(__name__)
_SPLIT = re.compile(
    r"(train|training|val|valid|validation|dev|test|testing|eval|holdout|unlabell?ed)"
    r"([-_ ]?(\d+|set|split|data|images?))*"
)
_PARTS = {"images", "image", "imgs", "img", "jpegimages", "annotations", "masks", "labels", "segmentations"}
_PIECE = re.compile(r"(fold|folder|part|split|subset|batch|chunk|shard)s?[-_ ]?\d+")
_VERSION_WORDS = {
    *("train", "training", "trn", "learn", "val", "valid", "validation", "dev", "test", "testing", "tst", "eval"),
    *("holdout", "raw", "orig", "original", "aug", "augmented", "backup"),
}
"""Words in names of splits and versions; a class may have one, too, so they count only where other evidence agrees."""
_TRAINING = re.compile("train|trn|learn|raw|orig", re.IGNORECASE)
"""The split or version that is more likely wanted."""
_DATE = re.compile(r"(19|20)\d\d([-_.]?\d\d){0,2}")
_COPY = re.compile(
    r"(?P<first>.+?)( - copy( \(\d+\))?| copy( \d+)?| ?\(\d+\)|[-_. ](bak|backup|copy)\d*|~)|copy of (?P<second>.+)",
    re.IGNORECASE,
)
"""Names that Windows, macOS, Linux and people give a copy of a folder."""
_SHOWN = 3


def check_class_folders(paths: Iterable[str], origin: str) -> None:
    """Compares the names of top folders with each other and with the names of the folders in them.

    Folders in them with the same names are classes below splits, or sessions below classes: where names do not decide,
    a warning is logged.

    Args:
        paths: of the images, below the root, each in a top folder.
        origin: path of the folder or archive, for messages.

    Raises:
        DatasetError: top folders are splits or pieces of a dataset, images next to annotations, or a copy of others.
    """
    inner: dict[str, set[str]] = {}
    shallow: set[str] = set()
    for folder in {path.rpartition("/")[0] for path in paths}:
        top, *below = folder.split("/", 2)
        inner.setdefault(top, set()).update(below[:1])
        if not below:
            shallow.add(top)
    _check_names(set(inner), shallow, origin)
    _check_copies(inner, origin)
    if not shallow:
        _check_shared(inner, origin)


def raise_for_inner(names: Sequence[str], origin: str) -> NoReturn:
    """Raises DatasetError: these top folders hold the class folders."""
    shown = " and ".join(map(repr, names))
    inner = f"{origin}/{next(filter(_TRAINING.search, names), names[0])}"
    raise DatasetError(
        f"{origin!r} holds {shown}, not class folders: give only one, e.g. {inner!r}, or --labels folder if they are "
        "classes"
    )


def _check_names(names: Set[str], shallow: Set[str], origin: str) -> None:
    """Raises DatasetError if names are those of splits or pieces of a dataset, or of images next to annotations."""
    splits = sorted(name for name in names if _SPLIT.fullmatch(name.lower()))
    parts = sorted(name for name in names if name.lower() in _PARTS)
    for found in (splits, parts):
        if len(found) > 1 or set(found) - shallow:
            raise_for_inner(found, origin)
    if splits and splits[0].lower() != "train":  # a vehicle, if its images are in it
        raise_for_inner(splits, origin)
    if pieces := sorted(name for name in names - shallow if _PIECE.fullmatch(name.lower())):
        raise_for_inner(pieces, origin)


def _check_copies(inner: Mapping[str, Set[str]], origin: str) -> None:
    """Raises DatasetError if a top folder is a copy: of another by its name, or of most others by those of its folders.

    Persons 1 and 2 with sessions 1 and 2 are no copies of each other: they share the names of their folders.
    """
    for top in sorted(inner):
        marked = _COPY.fullmatch(top)
        if marked is not None and (name := marked["first"] or marked["second"]) in inner:
            raise DatasetError(
                f"{origin!r} holds the folders {name!r} and {top!r}, expected each class in one place: move {top!r} "
                "elsewhere if it is a copy, or --labels folder if it is a class"
            )
    for top, below in sorted(inner.items()):
        copies = sorted(
            name
            for name in below & (inner.keys() - {top})
            if below.isdisjoint(inner[name]) and not (name.isdecimal() and top.isdecimal())
        )
        if 2 * len(copies) >= len(below) > 0:
            raise DatasetError(
                f"{origin!r} holds the folders {copies[0]!r} and {f'{top}/{copies[0]}'!r}, expected each class in one "
                f"place: move {top!r} elsewhere if it holds copies or splits, or --labels folder if it is a class"
            )
        if copies:
            _logger.warning(
                "%r holds the folders %r and %r: images in the second are of the class %r; --labels folder takes them "
                "so without this warning",
                origin,
                copies[0],
                f"{top}/{copies[0]}",
                top,
            )


def _check_shared(inner: Mapping[str, Set[str]], origin: str) -> None:
    """Raises DatasetError, or logs a warning, if most folders within each top folder have the same names."""
    counted = Counter(name for below in inner.values() for name in below)
    shared = {name for name, count in counted.items() if 2 * count > len(inner)}
    if len(inner) < 2 or len(shared) < 2:
        return
    if any(2 * len(below & shared) < max(len(below), len(shared)) for below in inner.values()):
        return
    tops = sorted(inner)
    if all(_VERSION_WORDS & set(re.split(r"[^a-z]+", top.lower())) for top in tops):
        raise_for_inner(tops, origin)
    if _are_sessions(shared, len(tops)):
        return
    _logger.warning(
        "%r: each of the top folders %s holds %s; the top folders are taken for the classes: if they are splits or "
        "copies, give only one, e.g. %r; --labels folder takes them for classes without this warning",
        origin,
        _shown(tops),
        _shown(sorted(shared)),
        f"{origin}/{tops[0]}",
    )


def _are_sessions(names: Set[str], num_tops: int) -> bool:
    """Whether folders of such names, in each top folder, are parts of a class and no classes themselves."""
    if all(name.isdecimal() for name in names) and len(names) <= num_tops:
        return True
    return all(
        name.lower() in _PARTS or any(kind.fullmatch(name.lower()) for kind in (_SPLIT, _PIECE, _DATE))
        for name in names
    )


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
