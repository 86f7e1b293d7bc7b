"""Sample keys as a cache keeps them."""

from __future__ import annotations

import numpy as np
import pytest

from kdkit.cache.format.keys import key_digests, match_rows, pack_keys, unpack_keys
from kdkit.errors import DatasetError


def test_keys_longer_than_a_reader_takes_are_refused_when_they_are_written() -> None:
    longest = "k" * 4096
    assert unpack_keys(pack_keys([longest]), 1) == [longest]
    assert unpack_keys(pack_keys([longest * 2, "a", "b"]), 3) == [longest * 2, "a", "b"]
    with pytest.raises(DatasetError, match=r"1 sample keys take 4097 bytes, a cache holds up to 4096"):
        pack_keys([longest + "k"])


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_matched_as_a_dictionary_would_whatever_occurs_twice(seed: int) -> None:
    draw = np.random.default_rng(seed)
    cached, current = ([f"k{key}" for key in draw.integers(0, 12, draw.integers(0, 15))] for _ in range(2))
    first: dict[str, int] = {}
    for row, key in enumerate(cached):
        first.setdefault(key, row)
    matched = match_rows(key_digests(cached), key_digests(current))
    assert matched.tolist() == [first.get(key, -1) for key in current]
