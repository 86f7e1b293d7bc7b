"""The codecs dense and compact: any row decodes, a row is its own, and the choice is the one that loses less."""

from __future__ import annotations

import functools
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from support import digits_dataset, tiny_model

from kdkit import build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.building.recode import recode_cache
from kdkit.cache.codecs import DenseFeature, create_feature_codec
from kdkit.errors import CacheMismatchError, ConfigError, NonFiniteOutputError

SHAPES = [(24,), (5, 12), (6, 4, 3)]


def correlated(rows: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """[rows, *shape] about a mean, in three directions, each of some channels and smooth over positions, and noise."""
    draw, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    axis = 0 if len(shape) == 3 else -1
    channels, positions = shape[axis], shape[-2] if len(shape) > 1 else 1
    wave = torch.cos(torch.pi * torch.arange(3)[:, None] * (torch.arange(positions) + 0.5) / positions)
    grid = torch.randn(3, channels, generator=fixed)[:, :, None] * wave[:, None]  # [3, C, positions]
    grid = grid[..., None].expand(-1, -1, -1, shape[-1]) if axis == 0 else grid.transpose(1, 2)
    found = torch.einsum("rd,d...->r...", torch.randn(rows, 3, generator=draw), grid.reshape(3, *shape)) + 1
    return found + torch.randn(rows, *shape, generator=draw) / 20


def relative_error(values: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """|x - x^|^2 / |x|^2 of each row, float64 [B]; 0 for a row of zeros that stays one."""
    rows, found = values.double().flatten(1), decoded.double().flatten(1)
    return (found - rows).square().sum(1) / rows.square().sum(1).clamp_min(1e-300)


def error_of(name: str, rows: torch.Tensor, row_bytes: int) -> float:
    codec = create_feature_codec(name, rows.shape[1:], row_bytes=row_bytes).suited_to(rows).fit(rows[::2])
    return float(relative_error(rows[1::2], codec.decode(codec.encode(rows[1::2]))).mean())


@functools.cache
def fitted(shape: tuple[int, ...], row_bytes: int, scale: float) -> DenseFeature:
    return DenseFeature(shape, row_bytes).fit(correlated(8, shape, 1) * scale)


@st.composite
def any_features(draw: st.DrawFn) -> tuple[DenseFeature, torch.Tensor]:
    """A codec fitted to other features, or to equal numbers; and [1 to 3, ...] of any size that is encodable."""
    shape = draw(st.sampled_from([*SHAPES, (1,), (3, 1, 1)]))
    scale = draw(st.sampled_from([1e-30, 1e-6, 1.0, 1e15]))
    unit = st.floats(-1, 1, width=32) | st.sampled_from([0.0, 1.0])
    rows = torch.from_numpy(draw(npst.arrays("float32", (draw(st.integers(1, 3)), *shape), elements=unit))) * scale
    return fitted(shape, draw(st.sampled_from([16, 70])), draw(st.sampled_from([0.0, 1.0, 1e14]))), rows


@settings(max_examples=20, deadline=None)
@given(any_features())
def test_any_features_decode_finite_no_worse_than_zeros_and_each_row_by_itself(
    given: tuple[DenseFeature, torch.Tensor],
) -> None:
    codec, rows = given
    assert codec.is_encodable(rows).all()
    payload = codec.encode(rows)
    decoded = codec.decode(payload)
    assert payload.shape == (len(rows), codec.row_bytes)
    assert decoded.shape == rows.shape
    assert (relative_error(rows, decoded) <= 1 + 1e-6).all()
    assert torch.equal(codec.encode(rows[-1:]), payload[-1:])
    torch.testing.assert_close(codec.decode(payload[-1:]), decoded[-1:], rtol=1e-5, atol=1e-5 * float(rows.abs().max()))


def plain_codes(sizes: np.ndarray, negative: np.ndarray, low_bits: np.ndarray, saved: float) -> np.ndarray:
    """Codes of sizes in steps, int64 [J], where level n begins at n - 1/2 + saved / 2^k."""
    levels = np.floor(sizes + (np.float32(0.5) - np.float32(saved) * np.float32(2) ** -low_bits)).astype(np.int64)
    return np.where(levels == 0, 0, 2 * levels - negative)


def plain_unary(coefficients: np.ndarray, low_bits: np.ndarray, room: int) -> list[int]:
    """What stands in unary of the codes [J] of one row, coded by the sentences of cache/CODECS.md, in `room` bits."""
    sizes, negative = np.abs(coefficients), coefficients < 0
    for code in range(1, 3073):
        step = np.float32(2.0 ** ((code - 2048) / 16))
        if sizes.max() > 2**22 * np.float64(step):  # far too fine, and beyond what a code may be
            continue
        found = plain_codes(sizes / step, negative, low_bits, 0.14) >> low_bits
        if found.sum() + len(found) <= room:
            finer = plain_codes(sizes / step, negative, low_bits, 0.08) >> low_bits
            for j in range(len(found)):
                if found.sum() + finer[j] - found[j] + len(found) > room:
                    break
                found[j] = finer[j]
            return [int(high) for high in found]
    raise AssertionError("no step fits")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_is_coded_at_the_finest_step_and_the_bits_that_are_left_round_the_first_coefficients_finely(
    shape: tuple[int, ...],
) -> None:
    row_bytes = 12 + math.prod(shape) // 3
    codec, rows = DenseFeature(shape, row_bytes).fit(correlated(60, shape, 1)), correlated(12, shape, 2)
    tables = codec._fitted.on(torch.device("cpu"))
    low_bits, low_bytes = tables.low_bits.numpy(), -(-int(tables.low_bits.sum()) // 8)
    coded_more_finely = 0
    for row, coefficients in zip(codec.encode(rows).numpy(), tables.transform.forward(rows).numpy(), strict=True):
        ones = np.flatnonzero(np.unpackbits(row[2 + low_bytes :]))
        wanted = plain_unary(coefficients, low_bits, 8 * (row_bytes - 2 - low_bytes))
        assert (np.diff(ones, prepend=-1) - 1).tolist() == wanted
        step = np.float32(2.0 ** ((int(row[:2].view("<u2")[0]) - 2048) / 16))
        coarse = plain_codes(np.abs(coefficients) / step, coefficients < 0, low_bits, 0.14) >> low_bits
        coded_more_finely += wanted != coarse.tolist()
    assert coded_more_finely > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_correlated_features_lose_less_with_more_bytes_and_less_than_in_sparse(shape: tuple[int, ...]) -> None:
    rows = correlated(120, shape, 1)
    errors = [error_of("dense", rows, row_bytes) for row_bytes in (16, 24, 40, 160)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.06
    assert errors[-1] < 1e-5
    assert errors[0] < error_of("sparse", rows, 16) / 3


def test_rows_of_equal_numbers_stay_exact_and_a_fit_goes_to_another_process() -> None:
    codec = DenseFeature((6, 4, 3)).fit(correlated(30, (6, 4, 3), 1))
    rows = torch.stack([torch.zeros(6, 4, 3), torch.full((6, 4, 3), 0.1)])
    assert torch.equal(codec.decode(codec.encode(rows)), rows)
    again = create_feature_codec(**codec.to_dict()).with_arrays(dict(codec.arrays))
    assert again == codec == pickle.loads(pickle.dumps(codec))
    assert again != DenseFeature((6, 4, 3)).fit(correlated(30, (6, 4, 3), 2))
    assert codec.decode(codec.encode(rows[:0])).shape == (0, 6, 4, 3)


def test_compact_is_sparse_after_a_relu_and_dense_where_features_are_correlated() -> None:
    draw = torch.Generator().manual_seed(0)
    after_relu = (torch.randn(80, 200, generator=draw) * torch.rand(80, 200, generator=draw).pow(3)).relu()
    for rows, chosen in ((after_relu, "sparse"), (correlated(80, (200,), 1), "dense")):
        codec = create_feature_codec("compact", (200,)).fit(rows)
        assert codec.name == chosen
        assert not codec.needs_fit
        assert codec.row_bytes == 40
    for too_wide_or_too_few in (torch.ones(2, 5000), correlated(1, (200,), 1)):
        codec = create_feature_codec("compact", too_wide_or_too_few.shape[1:])
        assert codec.fit(too_wide_or_too_few).name == "sparse"


def test_what_it_cannot_hold_or_be_is_refused_in_a_line() -> None:
    codec, rows = create_feature_codec("dense", (4, 5)), torch.ones(4, 4, 5)
    for row, wrong in enumerate((float("nan"), float("inf"), -2e15)):
        rows[row, 3, 2] = wrong
    assert codec.is_encodable(rows).tolist() == [False, False, False, True]
    assert codec.is_encodable(rows.half()).tolist() == [False, False, False, True]
    with pytest.raises(NonFiniteOutputError, match="the sample holds NaN, infinity or values beyond 1e\\+15"):
        codec.fit(rows)
    with pytest.raises(NonFiniteOutputError, match="the sample holds no rows"):
        codec.fit(rows[:0])
    with pytest.raises(ConfigError, match="not fitted yet"):
        codec.encode(rows)
    with pytest.raises(ConfigError, match="compact only chooses"):
        create_feature_codec("compact", (4, 5)).decode(torch.zeros(1, 16, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="at most 4096 channels, and as many tokens, got \\[5000\\]"):
        create_feature_codec("dense", (5000,)).fit(torch.ones(2, 5000))
    arrays = dict(codec.fit(rows[3:]).arrays)
    for name, wrong_array, told in (
        ("basis", arrays["basis"][:4], r"'basis' must be finite float16 \[5, 5\], got float16 \[4, 5\]"),
        ("mean", arrays["mean"] * np.float32("inf"), "'mean' must be finite float32"),
        ("mean", arrays["mean"] + np.float32(2e15), r"'mean' must hold numbers up to 1e\+15, got 2e\+15"),
        ("positions", arrays["positions"] + np.float16(2), r"'positions' must hold numbers up to 1.01, got [23]"),
        ("low_bits", np.full(20, 13, np.uint8), "'low_bits' must hold 0 to 12, or 255, got 13"),
        ("low_bits", np.full(20, 12, np.uint8), "keeps 20 coefficients, for which a row has no room"),
        ("more", arrays["mean"], r"needs arrays \['basis', 'low_bits', 'mean', 'positions'\]"),
    ):
        with pytest.raises(ConfigError, match=told):
            codec.with_arrays({**arrays, name: wrong_array})


def test_a_compact_cache_is_built_recoded_extended_and_resumed_in_the_codecs_that_it_names(tmp_path: Path) -> None:
    teacher, dataset = create_teacher(tiny_model()), digits_dataset(12)
    config = BuildConfig(streams=("pooled", "stages.2"), num_workers=0, batch_size=12, codec=None)
    build_cache(teacher, dataset, tmp_path / "f.h5", config)
    recode_cache(tmp_path / "f.h5", tmp_path / "r.h5", feature_bytes=60)
    compact = BuildConfig(**{**vars(config), "feature_codec": "compact", "feature_bytes": 60})
    for _ in range(2):  # the second build finds the first
        build_cache(teacher, dataset, tmp_path / "c.h5", compact)
    exact, built, recoded = (open_cache(tmp_path / f"{name}.h5") for name in "fcr")
    for stream in config.streams:
        rows = exact.codecs[stream].decode(exact.read_encoded(range(12), 1, stream))
        told, each = built.fidelity()[stream][1], built.metadata.fidelity[stream]["each"]
        for cache in (built, recoded):
            codec = cache.codecs[stream]
            assert codec.name in ("sparse", "dense")
            assert codec.row_bytes == 60
            error = relative_error(rows, codec.decode(cache.read_encoded(range(12), 1, stream))).sqrt()
            assert error.mean() < 1
            if cache is built:
                assert float(error[::each].mean()) == pytest.approx(told["relative_error_mean"], rel=0.02, abs=5e-4)
    with pytest.raises(CacheMismatchError, match=r"codec\.name"):
        build_cache(teacher, dataset, tmp_path / "c.h5", BuildConfig(**{**vars(compact), "feature_codec": "int8"}))
