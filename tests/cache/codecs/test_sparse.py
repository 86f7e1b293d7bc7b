"""The codec sparse: any row decodes, a row is its own, and the step is the finest that fits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from support import digits_dataset, tiny_model

from kdkit import build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.building.recode import recode_cache
from kdkit.cache.codecs import create_feature_codec
from kdkit.errors import CacheMismatchError, ConfigError


def relative_error(values: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """|x - x^|^2 / |x|^2 of each row, float64 [B]; 0 for a row of zeros that stays one."""
    rows, found = values.double().flatten(1), decoded.double().flatten(1)
    return (found - rows).square().sum(1) / rows.square().sum(1).clamp_min(1e-300)


@st.composite
def any_features(draw: st.DrawFn) -> torch.Tensor:
    """[1 to 3, ...] with few, many or equal numbers, of any size that is encodable."""
    sides = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    scale = draw(st.sampled_from([1e-30, 1e-6, 1.0, 1e15]))
    unit = st.floats(-1, 1, width=32) | st.sampled_from([0.0, 1.0])
    return torch.from_numpy(draw(npst.arrays("float32", (draw(st.integers(1, 3)), *sides), elements=unit))) * scale


@settings(max_examples=80, deadline=None)
@given(any_features(), st.integers(0, 60))
def test_any_features_decode_finite_no_worse_than_zeros_and_each_row_by_itself(rows: torch.Tensor, more: int) -> None:
    codec = create_feature_codec("sparse", rows.shape[1:], row_bytes=16 + more).suited_to(rows)
    assert codec.is_encodable(rows).all()
    payload = codec.encode(rows)
    decoded = codec.decode(payload)
    assert payload.shape == (len(rows), 16 + more)
    assert decoded.shape == rows.shape
    assert (relative_error(rows, decoded) <= 1 + 1e-6).all()
    assert torch.equal(codec.encode(rows[-1:]), payload[-1:])
    assert torch.equal(codec.decode(payload[-1:]), decoded[-1:])


def test_features_after_a_relu_lose_little_in_a_tenth_of_the_bytes_and_equal_numbers_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    sparse = (torch.randn(64, 1280, generator=draw) * torch.rand(64, 1280, generator=draw).pow(3)).relu()
    rows = torch.cat([sparse, torch.zeros(1, 1280), torch.full((1, 1280), 0.1)])
    codec = create_feature_codec("sparse", (1280,))
    errors = relative_error(rows, codec.decode(codec.encode(rows)))
    assert codec.row_bytes == 256
    assert errors[:64].mean() < 0.02
    assert (errors[64:] == 0).all()
    errors_of = [
        relative_error(sparse, other.decode(other.encode(sparse))).mean()
        for other in (create_feature_codec("sparse", (1280,), row_bytes=n) for n in (160, 256, 512, 2048))
    ]
    assert errors_of == sorted(errors_of, reverse=True)
    assert errors_of[-1] < 1e-4


def test_what_it_cannot_hold_is_refused_in_a_line() -> None:
    codec = create_feature_codec("sparse", (4, 5))
    rows = torch.ones(5, 4, 5)
    for row, wrong in enumerate((float("nan"), float("inf"), 2e15, -1e-3)):
        rows[row, 3, 2] = wrong
    assert codec.is_encodable(rows).tolist() == [False, False, False, False, True]
    assert codec.is_encodable(rows.half()).tolist() == [False, False, False, False, True]
    assert codec.suited_to(rows).is_encodable(rows).tolist() == [False, False, False, True, True]
    assert codec.decode(codec.encode(rows[:0])).shape == (0, 4, 5)
    assert create_feature_codec(**codec.to_dict()) == codec
    with pytest.raises(ConfigError, match="at least 16 bytes per row of 20 numbers, got row_bytes=15"):
        create_feature_codec("sparse", (4, 5), row_bytes=15)
    with pytest.raises(ConfigError, match="has_signs must be true or false, got 1"):
        create_feature_codec("sparse", (4, 5), has_signs=1)
    with pytest.raises(ConfigError, match="codec 'sparse' has no option 'signed'; it takes has_signs"):
        create_feature_codec("sparse", (4, 5), row_bytes=20, signed=False)  # of files whose places were coded otherwise
    with pytest.raises(ConfigError, match="codec 'int8' has no option 'row_bytes'; it takes none"):
        create_feature_codec("int8", (4, 5), row_bytes=16)


def test_a_build_and_a_recoding_hold_the_same_rows_and_say_what_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, dataset = create_teacher(tiny_model()), digits_dataset(12)
    config = BuildConfig(streams=("pooled", "stages.2"), num_workers=0, batch_size=12, codec=None)
    build_cache(teacher, dataset, tmp_path / "f.h5", config)
    config = dataclasses.replace(config, feature_codec="sparse", feature_bytes=60)
    build_cache(teacher, dataset, tmp_path / "s.h5", config)
    assert "sparse of 60 bytes per row keeps little of stages.2, its relative error is 0." in caplog.text
    assert "little of pooled" not in caplog.text
    recode_cache(tmp_path / "f.h5", tmp_path / "r.h5", feature_codec="sparse", feature_bytes=60)
    exact, built, recoded = (open_cache(tmp_path / f"{name}.h5") for name in "fsr")
    for stream in config.streams:
        rows, told = exact.codecs[stream].decode(exact.read_encoded(range(12), 1, stream)), built.fidelity()[stream][1]
        for cache in (built, recoded):
            assert cache.metadata.row_bytes(stream) == 60
            decoded = cache.codecs[stream].decode(cache.read_encoded(range(12), 1, stream))
            error = relative_error(rows, decoded).sqrt()
            assert float(error.mean()) == pytest.approx(told["relative_error_mean"], rel=1e-2)
    with pytest.raises(CacheMismatchError, match=r"codec\.row_bytes = 60, this run has 61"):
        build_cache(teacher, dataset, tmp_path / "s.h5", dataclasses.replace(config, feature_bytes=61))
