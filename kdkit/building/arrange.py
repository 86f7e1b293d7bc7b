"""In which order rows of finished caches stand in a new one.

The format stores pixel hashes and fidelity for rows at fixed positions: hashes for the first 1,024 and every 64th,
fidelity for every n-th. Rows that were taken from caches have them only if they stood at such a position before. So
rows with a hash go where one is stored, and measured rows where fidelity is. Samples are matched with rows by key, so
the order changes nothing else. Dimensions: R rows of the new cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdkit.cache.format.constants import hashed_rows
from kdkit.cache.types import Array

Mask = np.ndarray[Any, np.dtype[np.bool_]]
_STEP = 1.02  # how much farther apart the measured rows are in the next trial


def arrange(hashed: Mask, measured: Mask, *, may_hash: bool = False) -> tuple[Array, int | None]:
    """Chooses the order of rows, the given one wherever it will do.

    Args:
        hashed: whether each row's pixels were hashed, bool [R].
        measured: whether each row's fidelity was measured, bool [R].
        may_hash: whether rows without a hash can be hashed now, so that they may stand where hashes are stored.

    Returns:
        The row at each position, int64 [R], and the distance of measured positions; None if no row is measured.
    """
    count = len(hashed)
    hash_at = np.zeros(count, dtype=bool)
    hash_at[hashed_rows(0, count)] = True
    places = np.flatnonzero(measured)
    each = -(-count // max(1, len(places)))
    if len(places) > 1 and np.array_equal(places, np.arange(0, count, places[1])):
        each = int(places[1])  # as they stand; partners of recorded views are named by their rows
    while measured.any() and each <= count:
        order = _assign(hash_at, each, hashed, measured, may_hash=may_hash)
        if order is not None:
            return order, each
        each = max(each + 1, int(each * _STEP))
    order = _assign(hash_at, None, hashed, measured, may_hash=may_hash)
    assert order is not None, "a merge of caches has more hashed rows than it needs"
    return order, None


def _assign(hash_at: Mask, each: int | None, hashed: Mask, measured: Mask, *, may_hash: bool) -> Array | None:
    """The order with every `each`-th row measured; None if there are too few such rows."""
    measure_at = np.zeros(len(hash_at), dtype=bool)
    if each is not None:
        measure_at[::each] = True
    if not (hash_at & ~hashed).any() and not (measure_at & ~measured).any():
        return np.arange(len(hash_at))
    order, is_free = np.full(len(hash_at), -1), np.ones(len(hash_at), dtype=bool)

    def fill(positions: Array, preferences: Sequence[Mask]) -> bool:
        """Fills positions with free rows of the first kind, then of the next; whether all are filled."""
        for kind in preferences:
            rows = np.flatnonzero(kind & is_free)[: len(positions)]
            order[positions[: len(rows)]], is_free[rows] = rows, False
            positions = positions[len(rows) :]
        return len(positions) == 0

    either = [np.ones_like(hashed)] if may_hash else []
    filled = (
        fill(np.flatnonzero(hash_at & measure_at), [hashed & measured, *([measured] if may_hash else [])])
        and fill(np.flatnonzero(measure_at & ~hash_at), [measured & ~hashed, measured])
        and fill(np.flatnonzero(hash_at & ~measure_at), [hashed & ~measured, hashed, *either])
        and fill(np.flatnonzero(~hash_at & ~measure_at), [np.ones_like(hashed)])
    )
    return order if filled else None
