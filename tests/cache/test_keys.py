"""Sample keys as a cache keeps them."""

from __future__ import annotations

import pytest

from kdkit.cache.keys import pack_keys, unpack_keys
from kdkit.errors import DatasetError


def test_keys_longer_than_a_reader_takes_are_refused_when_they_are_written() -> None:
    longest = "k" * 4096
    assert unpack_keys(pack_keys([longest]), 1) == [longest]
    assert unpack_keys(pack_keys([longest * 2, "a", "b"]), 3) == [longest * 2, "a", "b"]
    with pytest.raises(DatasetError, match=r"1 sample keys take 4097 bytes, a cache holds up to 4096"):
        pack_keys([longest + "k"])
