"""Streams of features next to, or in place of, the logits: they are read as stored, within the codec's bound."""

from __future__ import annotations

import dataclasses
import math
import pickle
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.torch import load_file
from support import RECIPE, cache_contents, digits, digits_dataset, tiny_model

from kdkit import build_cache, create_teacher, extend_cache, open_cache
from kdkit.building.config import BuildConfig
from kdkit.building.estimate import estimate_cache
from kdkit.building.verify import verify_cache
from kdkit.cache import CachedTeacher
from kdkit.cache.codecs import create_feature_codec
from kdkit.cache.export import export_cache
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.errors import (
    CacheCorruptError,
    CacheMismatchError,
    CacheStreamError,
    ConfigError,
    NonFiniteOutputError,
    ShapeError,
    UnknownNameError,
)
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher
from kdkit.types import Batch, TeacherOutput

STREAMS = ("logits", "pooled", "tokens", "stages.2")
CONFIG = BuildConfig(streams=STREAMS, codec="float32", num_workers=0, batch_size=20)
VIEW = 1


def plain_features(dataset: ReplayedDataset, view: int) -> dict[str, torch.Tensor]:
    """Logits and features by plain timm, without any of kdkit's taps, build or cache."""
    model = tiny_model().eval()
    images = torch.stack([dataset[row, view].image for row in range(len(dataset))])
    with torch.no_grad():
        final, maps = model.forward_intermediates((images.float() / 255 - 0.5) / 0.5, indices=[2])
        pooled = model.forward_head(final, pre_logits=True)
        tokens = final.flatten(2).transpose(1, 2)
        return {"logits": model.forward_head(final), "pooled": pooled, "tokens": tokens, "stages.2": maps[0]}


@pytest.fixture(scope="module")
def dataset() -> ReplayedDataset:
    return digits_dataset(60)


@pytest.fixture(scope="module", params=["float16", "int8"])
def cached(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, dataset: Any) -> CachedTeacher:
    path = tmp_path_factory.mktemp(request.param) / "t.h5"
    config = dataclasses.replace(CONFIG, feature_codec=request.param)
    build_cache(create_teacher(tiny_model()), dataset, path, config)
    return open_cache(path, dataset)


def batch(rows: list[int], view: int = VIEW) -> Batch:
    return Batch(torch.empty(len(rows), 0), torch.zeros(len(rows)), torch.tensor(rows), view)


def bound(codec: str, values: torch.Tensor) -> torch.Tensor:
    """The greatest error that CODECS.md allows, of each number of [B, ...]."""
    if codec == "float16":
        return (values.abs() * 2**-11).clamp_min(2**-25)
    spread = values.flatten(2) if values.ndim > 2 else values[:, None]
    half = (spread.amax(2, keepdim=True) - spread.amin(2, keepdim=True)) / 510
    rounding = 2**-22 * spread.abs().amax(2, keepdim=True)
    least = torch.finfo(torch.float32).tiny  # below it float32 has fewer bits, and a step may round to 0
    return (half + rounding).clamp_min(least).expand_as(spread).reshape(values.shape)


def test_features_equal_timms_within_the_codecs_bound(cached: CachedTeacher, dataset: ReplayedDataset) -> None:
    rows = [59, 0, 7, 7]
    output = cached(batch(rows))
    expected = plain_features(dataset, VIEW)
    assert output.logits is not None
    torch.testing.assert_close(output.logits, expected["logits"][rows].log_softmax(1), rtol=1e-4, atol=1e-5)
    assert set(output.features) == {"pooled", "tokens", "stages.2"}
    for name, found in output.features.items():
        wanted = expected[name][rows]
        assert found.shape == wanted.shape
        assert found.dtype == torch.float32
        allowed = bound(cached.codecs[name].name, wanted) + 1e-5 * wanted.abs().amax()  # batches round differently
        assert ((found - wanted).abs() <= allowed).all()


def test_features_can_be_read_without_kdkit_as_the_page_describes(cached: CachedTeacher) -> None:
    with h5py.File(cached.path) as file:
        for name, described in cached.metadata.streams.items():
            if name == "logits":
                continue
            row, shape = file[f"views/0001/{name}"][7], described["codec"]["shape"]
            if described["codec"]["name"] == "float16":
                values = row.view("<f2").astype("f4").reshape(shape)
            else:
                groups = shape[0] if len(shape) > 1 else 1
                head = row[: 8 * groups].view("<f4").reshape(groups, 2)
                codes = row[8 * groups :].reshape(groups, -1)
                values = (head[:, :1] + head[:, 1:] * codes).reshape(shape)
            assert len(row) == described["row_bytes"]
            np.testing.assert_allclose(values, cached(batch([7])).features[name][0], rtol=1e-5, atol=1e-6)


def test_only_requested_streams_are_read(cached: CachedTeacher, dataset: ReplayedDataset) -> None:
    some = open_cache(cached.path, dataset, streams=["pooled"])
    output = some(batch([3, 1]))
    assert output.logits is None
    assert torch.equal(output.features["pooled"], cached(batch([3, 1])).features["pooled"])
    assert set(output.features) == {"pooled"}
    assert some.num_classes == 10
    assert open_cache(cached.path, dataset, streams="pooled").streams == ("pooled",)
    twin = pickle.loads(pickle.dumps(some))
    assert twin.streams == ("pooled",)
    assert not [key for key in some._payloads if key[1] != "pooled" and not some._payloads[key]._unverified.all()]
    with pytest.raises(CacheStreamError, match=r"no stream 'blocks.1', it has streams .*--streams .*blocks\.1`"):
        open_cache(cached.path, dataset, streams=["logits", "blocks.1"])


def test_a_flipped_bit_in_a_feature_names_its_stream_and_the_others_are_read(
    cached: CachedTeacher, tmp_path: Path, dataset: ReplayedDataset
) -> None:
    content = bytearray(cached.path.read_bytes())
    with h5py.File(cached.path) as file:
        content[file["views/0001/tokens"].id.get_offset() + 99] ^= 1
    (tmp_path / "t.h5").write_bytes(content)
    damaged = open_cache(tmp_path / "t.h5", dataset)
    with pytest.raises(CacheCorruptError, match="view 1, rows 0 to 59 of 'tokens'"):
        damaged(batch([3]))
    assert open_cache(tmp_path / "t.h5", dataset, streams=["pooled"])(batch([3])).features["pooled"].isfinite().all()


def test_the_summary_and_the_metadata_say_what_is_kept(cached: CachedTeacher) -> None:
    summary = cached.summary()
    codec = cached.codecs["tokens"].name
    width = tiny_model().num_features
    assert summary["  tokens"].startswith(f"{codec}, 1 x {width} numbers, ")
    assert "relative error" in summary["tokens kept"]
    worst = {"float16": 2**-10, "int8": 2e-2}[codec]
    for name in ("pooled", "tokens", "stages.2"):
        assert 0 < cached.metadata.fidelity[name]["relative_error_max"] < worst
        assert cached.metadata.fidelity[name]["rows"] == 60


class _Louder(Teacher):
    """Has the same logits, but other pooled features."""

    def forward(self, batch: Batch) -> TeacherOutput:
        output = super().forward(batch)
        return TeacherOutput(output.logits, {**output.features, "pooled": output.features["pooled"] * 1.01})


def test_verify_runs_the_teacher_on_features_again(cached: CachedTeacher, dataset: ReplayedDataset) -> None:
    report = verify_cache(cached.path, create_teacher(tiny_model()), dataset, num_rows=8)
    assert set(report.differences) == set(STREAMS)
    assert report.rows_compared == 8
    with pytest.raises(
        CacheMismatchError, match=r"current output, most on 'digit-\d+' \(view \d\): its pooled differ by .* of"
    ):
        verify_cache(cached.path, _Louder(tiny_model(), taps=STREAMS[1:]), dataset, num_rows=8)


def test_verify_compares_any_view_that_the_dataset_has(tmp_path: Path) -> None:
    teacher, recipes = create_teacher(tiny_model()), [dataclasses.replace(RECIPE, num_views=views) for views in (4, 2)]
    config = BuildConfig(codec="float32", num_workers=0)
    build_cache(teacher, digits_dataset(20, recipes[0]), tmp_path / "t.h5", config)
    for recipe in recipes:
        dataset = digits_dataset(20, recipe)
        reports = [verify_cache(tmp_path / "t.h5", teacher, dataset, num_rows=2, seed=seed) for seed in range(8)]
        assert [report.rows_compared for report in reports] == [2] * 8
        assert {view for report in reports for view in report.divergence} == set(range(recipe.num_views))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, so that many load ahead
def test_an_estimate_does_not_count_what_workers_had_loaded_already(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, seconds = 8, 0.1
    load = ArraySource.__getitem__

    def slowly(source: ArraySource, index: int) -> object:
        time.sleep(seconds)
        return load(source, index)

    monkeypatch.setattr(ArraySource, "__getitem__", slowly)
    config = BuildConfig(codec="float32", num_workers=workers, batch_size=2)
    estimate = estimate_cache(create_teacher(tiny_model()), digits_dataset(80), config)
    assert estimate.images_per_second <= workers / seconds * 1.1  # no loader can be quicker


def test_verify_accepts_a_lowrank_row_that_is_as_close_to_the_teacher(tmp_path: Path) -> None:
    teacher, dataset = create_teacher(tiny_model()), digits_dataset(300)
    config = BuildConfig(codec="lowrank", codec_options={"row_bytes": 8}, num_workers=0)
    build_cache(teacher, dataset, tmp_path / "t.h5", config)
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            parameter.mul_(1 + 1e-5)  # as another device would round
    report = verify_cache(tmp_path / "t.h5", teacher, dataset, num_rows=256, allow_mismatch={"teacher.weights_sha256"})
    assert set(report.divergence) == {0, 1}
    kept = open_cache(tmp_path / "t.h5").metadata.fidelity["logits"]["kl_mean_t1"]
    assert report.divergence[0] == pytest.approx(kept, rel=0.5)
    with pytest.raises(CacheMismatchError, match=r"its logits differ by .* nats"):
        verify_cache(
            tmp_path / "t.h5", create_teacher(tiny_model(seed=1)), dataset, allow_mismatch={"teacher.weights_sha256"}
        )


@pytest.mark.parametrize("feature_codec", ["float16", "int8"])
def test_features_alone_make_a_cache(tmp_path: Path, dataset: ReplayedDataset, feature_codec: str) -> None:
    config = dataclasses.replace(CONFIG, streams=("pooled",), codec=None, feature_codec=feature_codec)
    estimate = estimate_cache(create_teacher(tiny_model()), dataset, config)
    build_cache(create_teacher(tiny_model()), dataset, tmp_path / "t.h5", config)
    assert (tmp_path / "t.h5").stat().st_size == pytest.approx(estimate.num_bytes, rel=0.03)
    cache = open_cache(tmp_path / "t.h5", dataset)
    assert (cache(batch([1])).logits, cache.streams) == (None, ("pooled",))
    with pytest.raises(CacheStreamError, match="no stream 'logits', it has streams pooled"):
        cache.read_encoded(np.array([1]), 0)
    with pytest.raises(ConfigError, match="no logits: only topk can be read sparsely"):
        open_cache(tmp_path / "t.h5", sparse=True)


def test_the_estimate_of_many_streams_is_within_3_percent(cached: CachedTeacher, dataset: ReplayedDataset) -> None:
    config = dataclasses.replace(CONFIG, feature_codec=cached.codecs["pooled"].name)
    estimate = estimate_cache(create_teacher(tiny_model()), dataset, config)
    assert cached.num_bytes == pytest.approx(estimate.num_bytes, rel=0.03)
    assert estimate.row_bytes == cached.metadata.all_row_bytes
    assert set(estimate.fidelity) == set(STREAMS)


def test_an_extended_cache_has_the_further_views_of_every_stream(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, streams=("logits", "pooled"), feature_codec="int8")
    teacher = create_teacher(tiny_model())
    for name, views in (("t.h5", 1), ("plain.h5", 2)):
        recipe = dataclasses.replace(RECIPE, num_views=views)
        build_cache(teacher, digits_dataset(20, recipe), tmp_path / name, config)
    extend_cache(teacher, digits_dataset(20), tmp_path / "t.h5", batch_size=20, num_workers=0)
    assert cache_contents(tmp_path / "t.h5") == cache_contents(tmp_path / "plain.h5")


def test_other_streams_or_another_codec_of_them_are_refused_at_the_same_path(tmp_path: Path) -> None:
    teacher, path = create_teacher(tiny_model()), tmp_path / "t.h5"
    config = dataclasses.replace(CONFIG, streams=("logits", "pooled"))
    build_cache(teacher, digits_dataset(8), path, config)
    assert build_cache(teacher, digits_dataset(8), path, config).images_built == 0
    with pytest.raises(CacheMismatchError, match=r"streams\.pooled\.codec\.name = 'float16', this run has 'int8'"):
        build_cache(teacher, digits_dataset(8), path, dataclasses.replace(config, feature_codec="int8"))
    with pytest.raises(CacheMismatchError, match=r"streams\.pooled = .*, this run has None"):
        build_cache(teacher, digits_dataset(8), path, dataclasses.replace(config, streams=("logits",)))
    with pytest.raises(UnknownNameError, match="no tap 'poled'; did you mean 'pooled'"):
        build_cache(
            teacher, digits_dataset(8), tmp_path / "u.h5", dataclasses.replace(config, streams=("logits", "poled"))
        )
    with pytest.raises(ConfigError, match="none twice"):
        BuildConfig(streams=("pooled", "pooled"))


class _Poisoned(Teacher):
    """Has infinity in a feature of its second batch of a build; its logits are finite."""

    batches = 0

    def forward(self, batch: Batch) -> TeacherOutput:
        output = super().forward(batch)
        self.batches += 1
        pooled = output.features["pooled"].clone()
        if self.batches == 3:
            pooled[2, 5] = math.inf
        return TeacherOutput(output.logits, {"pooled": pooled})


def test_a_feature_that_cannot_be_kept_is_named_with_its_stream_and_sample(tmp_path: Path) -> None:
    dataset = ReplayedDataset(digits(20), ViewRecipe(size=32, num_views=2, hflip=0.0))
    config = dataclasses.replace(CONFIG, streams=("logits", "pooled"))
    with pytest.raises(NonFiniteOutputError, match="in pooled of 'digit-2' in view 1"):
        build_cache(_Poisoned(tiny_model(), taps=["pooled"]), dataset, tmp_path / "t.h5", config)


def test_features_are_exported_under_their_name(cached: CachedTeacher, tmp_path: Path) -> None:
    for name in ("t.npz", "t.safetensors"):
        export_cache(cached.path, tmp_path / name, view=1, stream="stages.2")
    expected = cached(batch(list(range(60)))).features["stages.2"]
    assert torch.equal(load_file(tmp_path / "t.safetensors")["stages.2"], expected)
    with np.load(tmp_path / "t.npz") as arrays:
        assert np.array_equal(arrays["stages.2"], expected.numpy())
        assert arrays["keys"].tolist() == cached.keys()
    with pytest.raises(CacheStreamError, match=r"'blocks\.0'"):
        export_cache(cached.path, tmp_path / "u.npz", stream="blocks.0")


AWKWARD = [0.0, 1e-8, -3e-6, 1.0, -1.0, 1e3, -65504.0, 0.1, 7e-5, 123.456, -0.25, 4096.5]


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("name", ["float16", "int8"])
def test_no_number_is_off_by_more_than_the_stated_bound(name: str, shape: tuple[int, ...]) -> None:
    codec = create_feature_codec(name, shape)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 12, generator=generator) * torch.logspace(-6, 4, 50)[:, None]
    flat = torch.full((1, 12), 3.25)
    values = torch.cat([rows, torch.tensor([AWKWARD]), flat, torch.zeros(1, 12)]).reshape(-1, *shape)
    decoded = codec.decode(codec.encode(values))
    assert decoded.shape == values.shape
    assert ((decoded - values).abs() <= bound(name, values)).all()
    assert torch.equal(decoded[-2:], values[-2:])  # what is even is exact
    assert codec.is_encodable(values).all()
    assert codec.decode(codec.encode(values[:0])).shape == (0, *shape)
    for wrong in (float("nan"), float("inf")):
        spoilt = values.clone()
        spoilt[4].view(-1)[3] = wrong
        assert codec.is_encodable(spoilt).tolist() == [row != 4 for row in range(len(values))]
    assert create_feature_codec(**codec.to_dict()) == codec


@st.composite
def any_features(draw: st.DrawFn) -> torch.Tensor:
    """[1 to 3, ...] of every number of sides, of sizes that half precision holds."""
    sides = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    scale = draw(st.sampled_from([1e-6, 0.1, 5.0, 6e4]))
    unit = st.floats(-1, 1, width=32) | st.sampled_from([0.0, 1.0])
    return torch.from_numpy(draw(npst.arrays("float32", (draw(st.integers(1, 3)), *sides), elements=unit))) * scale


@settings(max_examples=60, deadline=None)
@given(any_features(), st.sampled_from(["float16", "int8"]))
@example(torch.tensor([[4.2e-45, 0.0]]), "int8")
def test_for_any_features_no_number_is_off_by_more_than_the_stated_bound(values: torch.Tensor, name: str) -> None:
    codec = create_feature_codec(name, values.shape[1:])
    payload = codec.encode(values)
    assert payload.shape == (len(values), codec.row_bytes)
    assert ((codec.decode(payload) - values).abs() <= bound(name, values)).all()


def test_features_beyond_half_precision_are_refused_by_float16_alone() -> None:
    values = torch.tensor([[1.0, 70_000.0]])
    assert not create_feature_codec("float16", (2,)).is_encodable(values)
    assert create_feature_codec("int8", (2,)).is_encodable(values)
    assert not create_feature_codec("int8", (2,)).is_encodable(torch.tensor([[-3e38, 3e38]]))


def test_shapes_and_names_that_cannot_be_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="known: float32, float16, int8, sparse"):
        create_feature_codec("topk", (4,))
    for shape in ((), (0,), (1, 2, 3, 4)):
        with pytest.raises(ConfigError, match="1 to 3 sides"):
            create_feature_codec("int8", shape)
    with pytest.raises(ShapeError, match=r"float features \[B, 4\]"):
        create_feature_codec("int8", (4,)).encode(torch.zeros(2, 5))
