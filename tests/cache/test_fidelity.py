"""What a codec keeps, measured in every view as it is built: on the same rows, none of which it was fitted on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import malice
import numpy as np
import pytest
import torch
from support import RECIPE, Pixels, Watched, cache_contents, digits, digits_dataset, tiny_model

from kdkit import CacheWriter, build_cache, create_teacher, extend_cache, open_cache
from kdkit.building.config import BuildConfig
from kdkit.building.estimate import estimate_cache
from kdkit.building.fit import num_probed
from kdkit.building.plan import BuildPlan
from kdkit.cache import CachedTeacher
from kdkit.cache.codecs import LowRankCodec, create_codec
from kdkit.cache.plot import plot_cache
from kdkit.data import ArraySource, EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.errors import CacheCorruptError, ConfigError
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher
from kdkit.types import Batch, TeacherOutput

GOLDEN = Path(__file__).parents[2] / "cache" / "golden"
ROWS, VIEWS = 1300, 3  # two shards a view
CONFIG = BuildConfig(
    codec="lowrank", codec_options={"row_bytes": 6}, streams=("logits", "pooled"), feature_codec="int8", num_workers=0,
    batch_size=100, shard_rows=1000, pack=False,
)  # fmt: skip


class Noticed(Teacher):
    """Costs nothing; its logits and features are pixels; records the rows that it runs on."""

    def __init__(self) -> None:
        super().__init__(Pixels())
        self.taps, self.rows = ("pooled",), []

    def forward(self, batch: Batch) -> TeacherOutput:
        assert batch.row is not None
        self.rows += batch.row.tolist()
        pixels = batch.input.flatten(1)
        return TeacherOutput(pixels[:, :10].clone(), {"pooled": pixels[:, 100:108].clone()})


def seen(views: int = VIEWS, rows: int = ROWS) -> ReplayedDataset:
    return ReplayedDataset(digits(rows), ViewRecipe(size=8, num_views=views, hflip=0.5))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[CachedTeacher, list[int]]:
    """The cache in parts, and the rows that its codec was fitted on."""
    teacher, fitted, fit = Noticed(), [], LowRankCodec.fit

    def watched_fit(self: LowRankCodec, *given: Any) -> LowRankCodec:
        fitted.extend(teacher.rows)
        return fit(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LowRankCodec, "fit", watched_fit)
        path = tmp_path_factory.mktemp("built") / "t.h5"
        build_cache(teacher, seen(), path, CONFIG)
    return open_cache(path), fitted


def live(rows: list[int], view: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The teacher's logits and pooled features of those rows, float64."""
    teacher, sampler = Noticed(), EpochSampler(rows, 50, num_views=VIEWS, shuffle=False)
    sampler.set_epoch(view)
    outputs = [teacher(batch) for batch in ReplayLoader(seen(), sampler, teacher.input_normalization)]
    parts = [[output.logits for output in outputs], [output.features["pooled"] for output in outputs]]
    logits, pooled = (torch.cat(part).double().numpy() for part in parts)  # type: ignore[arg-type]
    return logits, pooled


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("view", range(VIEWS))
def test_the_fidelity_of_each_view_is_what_plain_numpy_computes_on_rows_the_codec_was_not_fitted_on(
    built: tuple[CachedTeacher, list[int]], view: int
) -> None:
    cache, fitted = built
    each = int(cache.metadata.fidelity["logits"]["each"])
    rows = list(range(0, ROWS, each))
    assert len(fitted) == ROWS - len(rows)
    assert not set(fitted) & set(rows)
    logits, pooled = live(rows, view)
    decoded = cache.codecs["logits"].decode(cache.read_encoded(np.array(rows), view)).double().numpy()
    kept = cache.fidelity()["logits"][view]
    assert kept["rows"] == len(rows) == 325  # a quarter
    assert kept["top1_agreement"] == (logits.argmax(1) == decoded.argmax(1)).mean()
    for temperature in (1, 2, 4):
        p, q = softmax(logits / temperature), softmax(decoded / temperature)
        divergence = (p * np.log(p / q)).sum(1)
        assert kept[f"kl_mean_t{temperature}"] == pytest.approx(divergence.mean(), rel=1e-4)
        assert kept[f"kl_p99_t{temperature}"] == pytest.approx(np.quantile(divergence, 0.99), rel=1e-4)
    features = cache.codecs["pooled"].decode(cache.read_encoded(np.array(rows), view, "pooled")).double().numpy()
    error = np.linalg.norm(features - pooled, axis=1) / np.linalg.norm(pooled, axis=1)
    lost, spread = ((features - pooled) ** 2).sum(), ((pooled - pooled.mean(0)) ** 2).sum()
    cosines = (features * pooled).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(pooled, axis=1)
    together = {"relative_error_about_mean": np.sqrt(lost / spread), "cosine_mean": cosines.mean()}
    assert cache.fidelity()["pooled"][view] == pytest.approx(
        {
            "rows": len(rows),
            "relative_error_mean": error.mean(),
            "relative_error_max": error.max(),
            "relative_error_p90": np.quantile(error, 0.9),
            **(together if view == 0 else {}),
        },
        rel=1e-4,
    )


def test_the_metadata_hold_the_fidelity_of_view_0_and_views_differ(built: tuple[CachedTeacher, list[int]]) -> None:
    cache, _ = built
    for stream, views in cache.fidelity().items():
        stored = cache.metadata.fidelity[stream]
        assert {name: {**views[0], "each": 4}[name] for name in stored} == pytest.approx(stored, rel=1e-4)
        assert views[0] != views[1] != views[2]


@pytest.mark.slow
def test_the_fidelity_of_a_packed_and_of_an_extended_cache_is_that_of_one_in_parts(
    built: tuple[CachedTeacher, list[int]], tmp_path: Path
) -> None:
    packed = dataclasses.replace(CONFIG, pack=True)
    build_cache(Noticed(), seen(), tmp_path / "plain.h5", packed)
    build_cache(Noticed(), seen(1), tmp_path / "t.h5", packed)
    extend_cache(Noticed(), seen(), tmp_path / "t.h5", batch_size=100, num_workers=0)
    assert cache_contents(tmp_path / "t.h5") == cache_contents(tmp_path / "plain.h5")
    assert open_cache(tmp_path / "t.h5").fidelity() == built[0].fidelity()


def test_info_names_the_view_of_which_least_is_kept(built: tuple[CachedTeacher, list[int]]) -> None:
    cache, _ = built
    told = cache.fidelity()["pooled"][0]
    about, cosine = told["relative_error_about_mean"], told["cosine_mean"]
    assert f"about the mean {about:.2g}, cosine {cosine:.4f}, of 325 rows of view 0" in cache.summary()["pooled kept"]
    for stream, measure in (("logits", "kl_mean_t1"), ("pooled", "relative_error_mean")):
        means = [view[measure] for view in cache.fidelity()[stream]]
        worst = means.index(max(means))
        assert f"{max(means):.2g}" in cache.summary()[f"{stream} worst"]
        assert cache.summary()[f"{stream} worst"].endswith(f"of 325 rows of view {worst}")


def test_the_plot_shows_the_fidelity_of_each_view(
    built: tuple[CachedTeacher, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    plot_cache(built[0], tmp_path / "t.png")
    drawn = {axes.get_ylabel(): [bar.get_height() for bar in axes.patches] for axes in plt.gcf().axes[3:]}
    monkeypatch.undo()
    plt.close(plt.gcf())
    fidelity = built[0].fidelity()
    assert drawn == {
        "KL, nats at T = 1, mean (0 keeps all)": [view["kl_mean_t1"] for view in fidelity["logits"]],
        "relative error, mean (0 keeps all)": [view["relative_error_mean"] for view in fidelity["pooled"]],
    }
    assert plot_cache(open_cache(GOLDEN / "v1-float16.h5"), tmp_path / "old.png").read_bytes()[:4] == b"\x89PNG"


def test_an_older_build_without_measured_views_resumes_without_them_and_can_be_extended(tmp_path: Path) -> None:
    teacher, config = create_teacher(tiny_model()), BuildConfig(codec="float16", num_workers=0)
    spec = BuildPlan(teacher, digits_dataset(20), config).make_spec()
    older = {"logits": {name: value for name, value in spec.fidelity["logits"].items() if name != "each"}}
    CacheWriter.create(tmp_path / "t.h5", dataclasses.replace(spec, fidelity=older)).close()
    build_cache(teacher, digits_dataset(20), tmp_path / "t.h5", config)
    recipe = dataclasses.replace(digits_dataset(20).recipe, num_views=3)
    extend_cache(teacher, digits_dataset(20, recipe), tmp_path / "t.h5", num_workers=0)
    cache = open_cache(tmp_path / "t.h5")
    cache.verify()
    assert (cache.num_views, cache.fidelity(), cache.metadata.fidelity) == (3, {}, older)
    assert "logits kept" in cache.summary()
    assert "logits worst" not in cache.summary()


def test_a_row_that_is_the_only_one_is_measured_too(tmp_path: Path) -> None:
    for codec, options in (("float16", {}), ("lowrank", {"row_bytes": 6})):
        config = BuildConfig(codec=codec, codec_options=options, num_workers=0)
        build_cache(create_teacher(tiny_model()), digits_dataset(1), tmp_path / f"{codec}.h5", config)
        assert [view["rows"] for view in open_cache(tmp_path / f"{codec}.h5").fidelity()["logits"]] == [1, 1]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "t.h5"
    build_cache(create_teacher(tiny_model()), digits_dataset(20), path, BuildConfig(codec="float16", num_workers=0))
    return path


def test_a_measure_that_was_changed_on_disk_is_not_told(packed: Path) -> None:
    with h5py.File(packed) as file:
        offset = file["views/0001/logits_fidelity"].id.get_offset()
    content = bytearray(packed.read_bytes())
    content[offset] ^= 1
    packed.write_bytes(content)
    for tell in (CachedTeacher.fidelity, CachedTeacher.summary, CachedTeacher.verify):
        with pytest.raises(CacheCorruptError, match=r"'views/0001/logits_fidelity' does not match its checksum"):
            tell(open_cache(packed))


@pytest.mark.parametrize("shape", [None, (19, 4), (20, 3)])
def test_measures_that_are_missing_or_of_another_shape_are_refused(packed: Path, shape: tuple[int, ...] | None) -> None:
    with h5py.File(packed, "r+") as file:
        del file["views/0001/logits_fidelity"]
        if shape is not None:
            file["views/0001/logits_fidelity"] = np.zeros(shape, "<f4")
    with pytest.raises(CacheCorruptError, match=r"views/0001' has 3 members, expected 4|logits_fidelity' is float32"):
        open_cache(packed)


@pytest.mark.parametrize(
    "told",
    [
        lambda true: {"logits": 3},
        lambda true: {"logits": {"rows": 5.0}},
        lambda true: {"logits": true, "pooled": {}},
        lambda true: {"logits": {**true, "each": 0}},
        lambda true: {"logits": {**true, "each": True}},
        lambda true: {"logits": {**true, "kl_mean_t1": "small"}},
    ],
)
def test_a_document_that_tells_of_fidelity_otherwise_than_a_build_does_is_refused(
    packed: Path, told: Callable[[dict[str, float]], dict[str, Any]]
) -> None:
    fidelity = told(dict(open_cache(packed).metadata.fidelity["logits"]))
    with h5py.File(packed, "r+") as file:
        malice.metadata(fidelity=fidelity)(file, packed)
    with pytest.raises(CacheCorruptError, match="fidelity"):
        open_cache(packed)


@pytest.mark.parametrize(("num_classes", "options"), [(1000, {"row_bytes": 48}), (10, {"row_bytes": 48})])
def test_options_are_those_of_the_default_codec_where_none_is_named(num_classes: int, options: dict[str, int]) -> None:
    teacher = create_teacher(tiny_model(num_classes=num_classes))
    dataset = ReplayedDataset(ArraySource(np.zeros((4, 8, 8, 3), dtype=np.uint8), np.arange(4)), RECIPE)
    config = BuildConfig(codec_options=options)
    if num_classes == 10:  # the default is float16, which has no such option
        with pytest.raises(ConfigError, match="row_bytes"):
            BuildPlan(teacher, dataset, config).choose_codec()
    else:
        codec = BuildPlan(teacher, dataset, config).choose_codec()
        assert codec is not None
        assert (codec.name, codec.row_bytes) == ("lowrank", 48)


def test_an_estimate_probes_fewer_images_than_a_build_whose_probe_is_in_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdkit.building.estimate.ESTIMATE_FIT_ROWS", 30)
    config = BuildConfig(codec="lowrank", codec_options={"row_bytes": 12}, num_workers=0, batch_size=10)
    dataset = digits_dataset(700, ViewRecipe(size=16, hflip=0.0))
    estimated = Watched(lambda number, logits: None)
    estimate = estimate_cache(estimated, dataset, config)
    assert estimated.batches < 27  # 18 batches to measure on, 3 to fit to, and the timed ones
    built = Watched(lambda number, logits: None)
    build_cache(built, dataset, tmp_path / "t.h5", config)
    assert built.batches == 53 + 18 + 70  # 525 images to fit to, 175 to measure on, and all
    assert estimate.seconds * estimate.images_per_second == pytest.approx(525 + 175 + 700)
    assert (tmp_path / "t.h5").stat().st_size == pytest.approx(estimate.num_bytes, rel=0.03)


@pytest.mark.parametrize(
    ("num_rows", "fitting", "measuring"), [(1, 2, 1), (2, 2, 2), (700, 700, 350), (1_281_167, 16_384 + 512, 512)]
)
def test_a_build_probes_some_images_beforehand_and_never_all_of_many(
    num_rows: int, fitting: int, measuring: int
) -> None:
    assert num_probed(LowRankCodec(num_classes=1000), num_rows) == fitting
    assert num_probed(create_codec("int8", 1000), num_rows) == measuring
