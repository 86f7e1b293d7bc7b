from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdkit.cache.codecs.bits import BitFields, index_width


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=40), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_fields_of_any_widths_come_back_in_the_order_that_unpackbits_lists(
    widths: list[int], seed: int, spare: int
) -> None:
    fields, rng = BitFields(tuple(widths)), np.random.default_rng(seed)
    values = np.stack([rng.integers(0, 2**w, size=5) for w in widths], axis=1)
    rows = fields.pack(torch.from_numpy(values), fields.num_bytes + spare)
    assert np.array_equal(fields.unpack(rows).numpy(), values)
    bits = "".join(map(str, np.unpackbits(rows[0].numpy())))
    written = "".join(format(v, f"0{w}b") for v, w in zip(values[0], widths, strict=True))
    assert bits == written.ljust(len(bits), "0")


@pytest.mark.parametrize(("count", "bits"), [(1, 1), (2, 1), (3, 2), (1000, 10), (1024, 10), (1025, 11), (65_537, 17)])
def test_an_index_takes_as_many_bits_as_its_greatest_value(count: int, bits: int) -> None:
    assert index_width(count) == bits
