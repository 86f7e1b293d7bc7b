"""Ranks with copies of the data of their own: whether all have the same samples, classes, labels and views."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kdkit.data.dataset import ReplayedDataset
from kdkit.data.sources.multi_label import multi_labels_of
from kdkit.errors import DatasetError
from kdkit.runtime import distributed
from kdkit.runtime.compare import differences

_ADVICE = "give every rank the same copy of the data and the same settings"


class _Content(NamedTuple):
    """The part of a dataset that all ranks must share."""

    keys: list[str]
    class_names: list[str] | None
    labels: list[int] | list[str] | None
    """Class indices; of several labels per image the numbers of its vector, one after the other."""
    recipe: dict[str, Any]

    @classmethod
    def of(cls, dataset: ReplayedDataset) -> _Content:
        names, targets, vectors = dataset.class_names, dataset.targets, multi_labels_of(dataset.source)
        labels = None if targets is None else targets.tolist()
        if vectors is not None:
            labels = [" ".join(map(str, vector)) for vector in vectors.astype(int).tolist()]
        return cls(list(dataset.keys), None if names is None else list(names), labels, dataset.recipe.to_dict())

    def digest(self) -> str:
        """SHA-256 of everything."""
        digest = hashlib.sha256()
        for part in self:
            for item in part if isinstance(part, list) else [part]:
                digest.update(f"{item!r}\0".encode("utf-8", "surrogatepass"))
            digest.update(b"\0")
        return digest.hexdigest()


def open_on_all_ranks(open_here: Callable[[], ReplayedDataset]) -> ReplayedDataset:
    """Opens this rank's copy of the data on every rank, and compares the copies; a collective call.

    Args:
        open_here: opens the data, without a collective call.

    Raises:
        DatasetError: the copies differ; names the first rank and the first difference.
        OtherRankError: the data could not be opened on another rank; names it.
    """
    dataset = distributed.run_on_all_ranks(open_here)
    check_same_on_ranks(dataset)
    return dataset


def check_same_on_ranks(dataset: ReplayedDataset) -> None:
    """Compares the number of samples, keys, class names, labels and recipe of all ranks; a collective call.

    A rank with other data would train on other images or labels than the rest, or wait for them for ever.

    Raises:
        DatasetError: on every rank; names the first rank that differs from rank 0, and the first difference.
    """
    if distributed.world_size() == 1:
        return
    mine = _Content.of(dataset)
    digests = distributed.all_gather(mine.digest())
    odd = next((number for number, digest in enumerate(digests) if digest != digests[0]), None)
    if odd is None:
        return
    first = distributed.on_rank_zero(lambda: mine)
    found = next(_differences(first, mine, odd), "another representation of it") if distributed.rank() == odd else None
    raise DatasetError(f"rank {odd} has other data than rank 0: {distributed.all_gather(found)[odd]}; {_ADVICE}")


def _differences(first: _Content, other: _Content, rank: int) -> Iterator[str]:
    """Describes each kind of difference of `rank`, whose content is `other`, from rank 0."""
    if first.keys != other.keys:
        yield _describe_keys(first.keys, other.keys, rank)
    if first.class_names != other.class_names:
        yield _describe_first("class", first.class_names, other.class_names, rank)
    if first.labels != other.labels:
        yield _describe_first("the label of", first.labels, other.labels, rank, first.keys)
    for field, there, here in differences("recipe", first.recipe, other.recipe):
        yield f"{field} is {here!r}, and {there!r} on rank 0"


def _describe_keys(first: Sequence[str], other: Sequence[str], rank: int) -> str:
    counts = f"{len(other):,} images, rank 0 has {len(first):,}"
    for mine, theirs, owner in ((other, set(first), rank), (first, set(other), 0)):
        if (key := next((key for key in mine if key not in theirs), None)) is not None:
            return f"it has {counts}, and {key!r} is on rank {owner} only"
    return _describe_first("image", first, other, rank)


def _describe_first(
    what: str, first: Sequence[Any] | None, other: Sequence[Any] | None, rank: int, keys: Sequence[str] | None = None
) -> str:
    """The first place at which two lists differ."""
    if first is None or other is None:
        known, unknown = (0, rank) if other is None else (rank, 0)
        return f"{'labels' if keys else 'class names'} are known on rank {known}, and not on rank {unknown}"
    if len(first) != len(other):
        return f"it has {len(other):,} classes, rank 0 has {len(first):,}"
    place = next(place for place, pair in enumerate(zip(first, other, strict=True)) if pair[0] != pair[1])
    where = place if keys is None else repr(keys[place])
    return f"{what} {where} is {other[place]!r}, and {first[place]!r} on rank 0"
