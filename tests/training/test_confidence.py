"""Views that the teacher is not confident on are not shown; the rest is shown as reproducibly as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import RECIPE, digits, digits_dataset, tiny_model, write_digits

from kdkit import build_cache, create_loader, create_teacher, open_cache, open_dataset
from kdkit.building.config import BuildConfig
from kdkit.cache import CacheReader
from kdkit.cli import main
from kdkit.errors import ConfigError
from kdkit.training.confidence import choose_views, replace_views
from kdkit.training.train_config import TrainConfig

COUNT = 60
EXACT = BuildConfig(codec="float32", num_workers=0)
VIEWS = RECIPE.__class__(**{**RECIPE.to_dict(), "num_views": 4, "transform": None})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two caches, a.h5 and b.h5, of four views of digits, and the digits as `data`."""
    folder = tmp_path_factory.mktemp("confidence")
    write_digits(folder / "data", COUNT)
    for seed, name in enumerate("ab"):
        dataset = open_dataset(folder / "data", recipe=VIEWS)
        build_cache(create_teacher(tiny_model(seed=seed)), dataset, folder / f"{name}.h5", EXACT)
    return folder


def plain_probabilities(folder: Path, names: str, keys: Any) -> np.ndarray:
    """Mean softmax of the caches, float64 [N, V, C], in the order of the dataset's keys."""
    mixed = []
    for name in names:
        cache = open_cache(folder / f"{name}.h5")
        rows = np.array([cache.keys().index(key) for key in keys])
        logits = np.stack([cache.read_encoded(rows, view).numpy().view("<f4") for view in range(4)], axis=1)
        odds = np.exp(logits.astype(np.float64) - logits.max(axis=2, keepdims=True))
        mixed.append(odds / odds.sum(axis=2, keepdims=True))
    return np.mean(mixed, axis=0)


@pytest.mark.parametrize("names", ["a", "ab"])
@pytest.mark.parametrize("by", ["confidence", "label", "both"])
@pytest.mark.parametrize("views_per_decode", [1, 2])
def test_only_views_that_pass_are_shown_and_each_image_as_often_as_before(
    folder: Path, names: str, by: str, views_per_decode: int
) -> None:
    paths: Any = [folder / f"{name}.h5" for name in names] if len(names) > 1 else folder / f"{names}.h5"
    cache: CacheReader = open_cache(paths)
    dataset = open_dataset(folder / "data", cache=cache)
    p = plain_probabilities(folder, names, dataset.keys)
    bound = float(np.quantile(p.max(axis=2), 0.3))
    config = TrainConfig(
        min_confidence=bound if by != "label" else None, label_agreement=by != "confidence", num_workers=0
    )
    keep = np.ones(p.shape[:2], dtype=bool)
    if by != "label":
        keep &= p.max(axis=2).astype(np.float32) >= bound
    if by != "confidence":
        keep &= p.argmax(axis=2) == np.asarray(dataset.targets)[:, None]
    chosen = choose_views(config, cache, dataset, show_progress=False)
    assert chosen is not None
    assert chosen.left_out == pytest.approx(1 - keep.mean())
    assert chosen.rows == np.flatnonzero(keep.any(axis=1)).tolist()

    def epochs(**options: Any) -> list[list[tuple[int, int]]]:
        loader = create_loader(
            dataset, tiny_model(), batch_size=4, num_workers=0, shuffle=True, rows=chosen.rows,
            shown_views=chosen.views, views_per_decode=views_per_decode, **options,
        )  # fmt: skip
        found = []
        for epoch in range(4):
            loader.set_epoch(epoch)
            found.append([pair for batch in loader.sampler for pair in batch])
        return found

    shown = epochs()
    assert all(keep[row, view] for pairs in shown for row, view in pairs)
    assert len({len(pairs) for pairs in shown}) == 1
    assert shown == epochs()
    if len(chosen.rows) % 4 == 0:
        counts = np.bincount([row for pairs in shown for row, _ in pairs], minlength=COUNT)
        assert set(counts[chosen.rows]) == {4}


def test_a_view_is_replaced_by_the_next_one_that_is_kept() -> None:
    keep = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]], dtype=bool)
    expected = [[0, 1, 2], [0, 0, 0], [1, 1, 1], [2, 2, 2], [0, 2, 2], [0, 1, 2]]
    assert replace_views(keep).tolist() == expected


def test_a_run_on_confident_views_is_described_and_resumes_to_the_same_student(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["--student", "test_resnet", "--batch-size", "8", "--workers", "0", "--device", "cpu", "--epochs", "2"]
    command = ["distill", str(folder / "data"), "--cache", str(folder / "a.h5"), *fixed, "--train.label-agreement"]
    assert main([*command, "-o", str(tmp_path / "once")]) == 0
    assert "left out by the teacher's predictions" in " ".join(capsys.readouterr().err.split())
    assert main([*command, "-o", str(tmp_path / "once"), "--resume", "--train.min-confidence", "0.1"]) == 1
    assert "min_confidence" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "again")]) == 0
    weights = [
        torch.load(tmp_path / run / "last.pth.tar", weights_only=True)["state_dict"] for run in ("once", "again")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_cannot_be_compared_is_refused(folder: Path, tmp_path: Path) -> None:
    cache = open_cache(folder / "a.h5")
    dataset = open_dataset(folder / "data", cache=cache)
    with pytest.raises(ConfigError, match="no view of any image would be left"):
        choose_views(TrainConfig(min_confidence=1.0), cache, dataset, show_progress=False)
    with pytest.raises(ConfigError, match="min_confidence must be above 0 and at most 1"):
        TrainConfig(min_confidence=1.5)
    mixed = RECIPE.preset("funmatch", size=32, num_views=1)
    build_cache(create_teacher(tiny_model()), digits_dataset(10, mixed), tmp_path / "m.h5", EXACT)
    cache = open_cache(tmp_path / "m.h5")
    dataset = open_dataset(digits(10), cache=cache)
    with pytest.raises(ConfigError, match="the views are mixed"):
        choose_views(TrainConfig(label_agreement=True), cache, dataset, show_progress=False)
