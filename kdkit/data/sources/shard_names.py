"""Names of tars: whether they are those of shards, which are not classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SYNSET = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"(.*?)(\d+)")
_WORDS = (
    "shards?|parts?|chunks?|split|batch|files?|data|dataset|images?|imgs?|train|training|val|valid|validation|dev|"
    "tests?|sets?|unlabell?ed|labell?ed"
)
_SHARD = re.compile(rf".*[-_. ]\d+|\d+|.*\D0\d+|.*\d+-of-\d+|({_WORDS})(\d*|[-_. ][a-z])", re.IGNORECASE)
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def is_shard_name(name: str) -> bool:
    """Whether a writer of shards, not a person who names classes, gives such a name to a tar; ImageNet's synsets are
    classes."""
    return _SHARD.fullmatch(name) is not None and _SYNSET.fullmatch(name) is None


def is_series(names: Sequence[str]) -> bool:
    """Whether all names are numbered, each number next to another of the same series, as those of shards are."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is None or _SYNSET.fullmatch(name):
            return False
        numbers.setdefault(match[1], []).append(int(match[2]))
    return all(len(each) == max(each) - min(each) + 1 for each in numbers.values())


def splits_of(names: Iterable[str]) -> list[str]:
    """The splits of a dataset, such as train and val, that tars name, if each tar names exactly one."""
    found: set[str] = set()
    for name in names:
        own = {_SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLITS}
        if len(own) != 1:
            return []
        found |= own
    return sorted(found)
