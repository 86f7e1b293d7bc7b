"""What sparse and dense share, against plain ways: numbers in unary, and the search for the finest step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kdkit.cache.codecs import FeatureCodec, create_feature_codec
from kdkit.cache.codecs.unary import _looked_up, _scanned, bytes_with_ones, places_of, zeros_before_ones


def random_stream(rows: int, num_bytes: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    stream = torch.randint(0, 256, (rows, num_bytes), dtype=torch.uint8, generator=draw)
    stream[::2] &= torch.randint(0, 256, (len(stream[::2]), num_bytes), dtype=torch.uint8, generator=draw)
    return stream


def test_ones_are_found_by_scanning_and_by_tables_where_numpy_finds_them() -> None:
    stream, count = random_stream(7, 40), 60
    bits = np.unpackbits(stream.numpy(), axis=1)
    wanted = np.stack([np.flatnonzero(row)[:count] for row in bits])
    zeros = np.diff(wanted, axis=1, prepend=-1) - 1
    assert np.array_equal(_scanned(stream, torch.empty(7, count, dtype=torch.int32)), zeros)
    assert np.array_equal(_looked_up(stream, count), wanted)
    assert np.array_equal(zeros_before_ones(stream, count), zeros)
    assert np.array_equal(places_of(torch.from_numpy(bits == 1), count), wanted)
    ones = [np.flatnonzero(row) for row in bits]
    padded = np.stack([np.pad(row, (0, 320 - len(row)), constant_values=320) for row in ones])
    assert torch.equal(bytes_with_ones(torch.from_numpy(padded), 40), stream)


def plain_finest(excess: Callable[[Tensor, int], Tensor], room: int, numbers: int, low: Tensor, high: Tensor) -> Tensor:
    """The first code at which a row fits, one after the other."""
    found = high.clone()
    for code in range(int(high.max()), int(low.min()) - 1, -1):
        probe = torch.full_like(low, code)
        found = torch.where((excess(probe, 1) <= 0) & (probe >= low) & (probe < found), probe, found)
    return found


def codec_and_rows(name: str, shape: tuple[int, ...]) -> tuple[FeatureCodec, Tensor]:
    """A codec of few bytes, and rows of many scales, with equal numbers and one number alone."""
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(7, *shape, generator=draw) * torch.logspace(-2, 2, 7).view(-1, *[1] * len(shape))
    rows[1] = rows[1].sign()
    rows[2].view(-1)[1:] = 0
    rows[3] = 0.01
    rows[4] = rows[4].pow(5)
    rows = rows.relu() if name == "sparse" else rows
    return create_feature_codec(name, shape).fit(torch.randn(16, *shape, generator=draw)), rows


@pytest.mark.parametrize("name", ["sparse", "dense"])
@pytest.mark.parametrize("sampled", [8, 10_000])
def test_the_step_is_the_first_that_fits_of_all(name: str, sampled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, rows = codec_and_rows(name, (12, 5, 3))
    monkeypatch.setattr(
        "kdkit.cache.codecs.steps._SAMPLED", sampled
    )  # a part of the numbers says where to look, or none
    found = codec.encode(rows)
    module = f"kdkit.cache.codecs.{name if name == 'sparse' else 'dense_feature'}"
    monkeypatch.setattr(f"{module}.finest", plain_finest)
    assert torch.equal(codec.encode(rows), found)
