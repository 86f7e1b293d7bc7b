"""Which rows and views of a cache are shown: as they are named, or the ones that a score puts first."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from kdkit.cache import CachedTeacher
from kdkit.data import ReplayedDataset
from kdkit.errors import ConfigError, nearest
from kdkit.report.predictions import MAX_ROWS, scores, spread

_NUMBERS = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")
_DEFAULT_VIEWS = 4
MAX_CELLS = 1000
"""Views that one sheet may show."""


def select_views(named: str | None, num_views: int) -> list[int]:
    """The views that `named` lists, in order, or the first four.

    Raises:
        ConfigError: a name is not a number, or there is no such view.
    """
    if named is None:
        return list(range(min(_DEFAULT_VIEWS, num_views)))
    return _parse(named, "view", num_views, {})


def select_rows(named: str | None, dataset: ReplayedDataset, count: int) -> list[int]:
    """The rows that `named` lists, in order, or at most `count` of all, evenly spread.

    Raises:
        ConfigError: a name is neither a row nor a key.
    """
    if named is None:
        return [int(row) for row in spread(count, len(dataset))]
    return _parse(named, "row", len(dataset), {key: row for row, key in enumerate(dataset.keys)})


def rank_rows(
    cache: CachedTeacher, dataset: ReplayedDataset, named: str | None, views: Sequence[int], sort: str, count: int
) -> tuple[list[int], list[str]]:
    """The `count` rows with the largest score, and a note with the score for each.

    Args:
        cache: matched with `dataset`.
        dataset: the images.
        named: rows to choose among, as `select_rows` takes them; by default 4,096 of all, evenly spread.
        views: views that the score is taken over.
        sort: "entropy" or "disagreement".
        count: how many rows are returned.

    Raises:
        ConfigError: a single view cannot disagree.
    """
    if sort == "disagreement" and len(views) < 2:
        raise ConfigError("disagreement is between views, and there is only one: sort by entropy, or name more views")
    candidates = select_rows(named, dataset, MAX_ROWS)
    values = scores(cache, cache.rows_of(torch.tensor(candidates)), views)[sort]
    order = values.argsort(descending=True, stable=True)[:count].tolist()
    return [candidates[index] for index in order], [f"{sort} {float(values[index]):.3f} nats" for index in order]


def check_size(rows: Sequence[int], views: Sequence[int]) -> None:
    """Checks that a sheet does not become too large to open.

    Raises:
        ConfigError: it has more than 1,000 views.
    """
    if len(rows) * len(views) > MAX_CELLS:
        raise ConfigError(
            f"a sheet shows at most {MAX_CELLS:,} views, got {len(rows):,} images x {len(views)} views: name fewer"
        )


def _parse(named: str, what: str, total: int, keys: dict[str, int]) -> list[int]:
    found: list[int] = []
    for name in map(str.strip, named.split(",")):
        numbers = _NUMBERS.fullmatch(name)
        if name in keys:
            found.append(keys[name])
        elif numbers is None:
            kinds = "a number, a range such as 2-5, or a key" if keys else "a number, or a range such as 2-5"
            raise ConfigError(f"{name!r} is not a {what}: expected {kinds}{nearest(name, keys)}")
        else:
            first = int(numbers[1])
            last = int(numbers[2] or first)
            if first > last or last >= total:
                raise ConfigError(f"there is no {what} {name}: there are {what}s 0 to {total - 1}")
            found += range(first, last + 1)
    return list(dict.fromkeys(found))
