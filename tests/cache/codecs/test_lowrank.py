from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_samples import awkward, even_spread_cost, is_likeliest, kl, teacher_like

from kdkit.cache.codecs import create_codec
from kdkit.cache.codecs.principal import allot_bits, principal_components
from kdkit.errors import ConfigError, NonFiniteOutputError, ShapeError


def test_at_equal_bytes_it_diverges_less_than_half_as_much_as_topk_on_rows_it_never_saw() -> None:
    rows = teacher_like(100, 1000, seed=9)
    lowrank = create_codec("lowrank", 1000, row_bytes=64).fit(teacher_like(1000, 1000))
    topk = create_codec("topk", 1000, k=28)
    assert lowrank.row_bytes == topk.row_bytes == 64
    ours, theirs = (kl(rows, c.decode(c.encode(rows))).mean() for c in (lowrank, topk))
    assert ours <= 0.4 * theirs


def test_more_bytes_diverge_less() -> None:
    sample, rows = teacher_like(500, 300), teacher_like(50, 300, seed=9)
    codecs = [create_codec("lowrank", 300, row_bytes=b).fit(sample) for b in (8, 12, 18, 28)]
    means = [kl(rows, c.decode(c.encode(rows))).mean().item() for c in codecs]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize("fitting_rows", [1, 2, 5, 300])
@pytest.mark.parametrize("classes", [2, 3, 10, 300])
def test_divergence_stays_under_the_bound_of_the_page_however_few_rows_were_fitted(
    classes: int, fitting_rows: int
) -> None:
    codec = create_codec("lowrank", classes, row_bytes=24, entries=1).fit(teacher_like(fitting_rows, classes))
    rows = torch.cat([awkward(classes), teacher_like(20, classes, seed=4), teacher_like(20, classes, seed=4, scale=20)])
    decoded = codec.decode(codec.encode(rows))
    assert (kl(rows, decoded) <= 0.0085 + 3e-7 * 2 + even_spread_cost(rows, 1) + 1e-6).all()
    assert is_likeliest(rows, decoded).all()


def test_a_sample_of_equal_rows_leaves_a_mean_and_no_components() -> None:
    codec = create_codec("lowrank", 20, row_bytes=12).fit(teacher_like(1, 20).expand(5, -1))
    assert codec.arrays["basis"].shape == (0, 20)
    rows = teacher_like(1, 20)
    assert kl(rows, codec.decode(codec.encode(rows))).max() < 0.01


def test_the_head_helps_where_the_sample_is_small() -> None:
    head = torch.randn(64, 300, generator=torch.Generator().manual_seed(1)).T
    rows, codec = teacher_like(60, 300, seed=9), create_codec("lowrank", 300, row_bytes=48)
    plain, helped = codec.fit(teacher_like(10, 300)), codec.fit(teacher_like(10, 300), head)
    plain_kl, helped_kl = (kl(rows, c.decode(c.encode(rows))).mean() for c in (plain, helped))
    assert helped_kl < 0.5 * plain_kl


def test_a_head_of_other_classes_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[300, features\], got \[299, 8\]"):
        create_codec("lowrank", 300).fit(teacher_like(10, 300), torch.zeros(299, 8))


def test_fitting_twice_gives_equal_arrays() -> None:
    first, second = (create_codec("lowrank", 100).fit(teacher_like(50, 100)) for _ in range(2))
    assert first == second
    peaks = np.take_along_axis(first.arrays["basis"], np.abs(first.arrays["basis"]).argmax(1)[:, None], 1)
    assert (peaks > 0).all()


def test_a_large_sample_of_many_classes_is_fitted_by_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = teacher_like(200, 300)
    exact, deviation = principal_components(rows, 20, 200)
    monkeypatch.setattr("kdkit.cache.codecs.principal._EXACT_SIDE", 50)
    iterated, also = principal_components(rows, 20, 200)
    torch.testing.assert_close(also, deviation, rtol=1e-3, atol=0)
    assert ((exact * iterated).sum(dim=1) > 0.99).float().mean() > 0.8


def test_rounding_noise_is_not_taken_for_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdkit.cache.codecs.principal._EXACT_SIDE", 50)
    codec = create_codec("lowrank", 600, row_bytes=96).fit(teacher_like(400, 600))
    assert len(codec.arrays["bits"]) <= 64
    rows = teacher_like(50, 600, seed=9)
    assert kl(rows, codec.decode(codec.encode(rows))).mean() < 0.01


def test_many_classes_of_small_weight_are_fitted_as_well() -> None:
    codec = create_codec("lowrank", 10_000).fit(teacher_like(300, 10_000))
    rows = teacher_like(20, 10_000, seed=9)
    assert kl(rows, codec.decode(codec.encode(rows))).mean() < 0.04


def test_each_bit_goes_to_the_component_with_the_most_left() -> None:
    assert allot_bits(torch.tensor([8.0, 4.0, 1.5, 0.1]), 6, 8) == [3, 2, 1, 0]
    assert allot_bits(torch.tensor([1.0, 1e-3]), 100, 8) == [8, 8]


def test_use_before_fit_raises_an_error_with_advice() -> None:
    codec = create_codec("lowrank", 100)
    assert codec.needs_fit
    assert dict(codec.arrays) == {}
    with pytest.raises(ConfigError, match=r"codec = codec.fit\(sample_logits\)"):
        codec.encode(torch.zeros(1, 100))
    with pytest.raises(ConfigError, match="not fitted"):
        codec.decode(torch.zeros(1, 96, dtype=torch.uint8))


@pytest.mark.parametrize(("classes", "entries"), [(2, 0), (1000, 0), (1000, 5), (70_000, 0)])
def test_too_few_bytes_are_refused_with_the_least_that_work(classes: int, entries: int) -> None:
    with pytest.raises(ConfigError, match="row_bytes of at least") as refusal:
        create_codec("lowrank", classes, row_bytes=1, entries=entries)
    least = int(str(refusal.value).split("at least ")[1].split(",")[0])
    assert create_codec("lowrank", classes, row_bytes=least, entries=entries).row_bytes == least
    with pytest.raises(ConfigError):
        create_codec("lowrank", classes, row_bytes=least - 1, entries=entries)


def test_options_outside_their_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 to 9 entries"):
        create_codec("lowrank", 10, entries=10)
    with pytest.raises(ConfigError, match="max_rank of at least 1"):
        create_codec("lowrank", 10, max_rank=-1)


def test_a_sample_with_nothing_or_nan_in_it_is_refused() -> None:
    codec = create_codec("lowrank", 10)
    with pytest.raises(NonFiniteOutputError, match="no rows"):
        codec.fit(torch.zeros(0, 10))
    with pytest.raises(NonFiniteOutputError, match="not finite"):
        codec.fit(torch.full((3, 10), torch.nan))


@pytest.mark.parametrize(
    ("name", "damaged", "message"),
    [
        ("mean", np.zeros(99, np.float32), r"must be float32 \[100\], got float32 \[99\]"),
        ("mean", np.full(100, np.nan, np.float32), "not finite"),
        ("basis", np.zeros((3, 100), np.float16), r"must be float16"),
        ("step", np.zeros(200, np.float64), "must be float32"),
        ("bits", 9, "must hold 1 to 8, got"),
        ("bits", 8, "a row has room for"),
        ("step", -1.0, "above 0"),
    ],
)
def test_damaged_arrays_are_refused(name: str, damaged: object, message: str) -> None:
    codec = create_codec("lowrank", 100, row_bytes=24).fit(teacher_like(50, 100))
    arrays = dict(codec.arrays)
    arrays[name] = damaged if isinstance(damaged, np.ndarray) else np.full_like(arrays[name], damaged)
    with pytest.raises(ConfigError, match=message):
        create_codec("lowrank", 100, row_bytes=24).with_arrays(arrays)


def test_missing_arrays_are_named() -> None:
    with pytest.raises(ConfigError, match=r"\['basis', 'bits', 'mean', 'step'\], got \['mean'\]"):
        create_codec("lowrank", 100).with_arrays({"mean": np.zeros(100, np.float32)})


def test_tables_are_uploaded_to_a_device_once() -> None:
    codec = create_codec("lowrank", 100).fit(teacher_like(50, 100))
    components = codec._components  # type: ignore[attr-defined]
    assert components.on(torch.device("cpu")) is components.on(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["topk", "lowrank"])
def test_a_gpu_decodes_as_a_cpu_does(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    codec, rows = create_codec(name, 300).fit(teacher_like(200, 300)), teacher_like(50, 300, seed=9)
    payload = codec.encode(rows)
    torch.testing.assert_close(codec.decode(payload.cuda()).cpu(), codec.decode(payload), atol=1e-4, rtol=1e-4)
    on_gpu = codec.decode(codec.encode(rows.cuda())).cpu()
    assert abs(kl(rows, on_gpu).mean() - kl(rows, codec.decode(payload)).mean()) < 0.01
