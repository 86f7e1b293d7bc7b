"""The teacher's confidence for each row and view, against a plain NumPy computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from support import CLASSES, RECIPE, digits, digits_dataset, tiny_model

from kdkit import build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher, CacheSpec, CacheWriter, create_codec
from kdkit.data import MultiLabelSource, ReplayedDataset
from kdkit.errors import CacheStreamError, ConfigError

COUNT = 30
PLACE = "t.h5.statistics.safetensors"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    config = BuildConfig(codec="float32", num_workers=0, streams=("logits", "pooled"))
    build_cache(create_teacher(tiny_model()), digits_dataset(COUNT), tmp_path / "t.h5", config)
    return tmp_path / "t.h5"


def plain(path: Path, view: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entropy, top-1 probability and top-1 class [R] of a view, float64, from the bytes of the float32 codec."""
    logits = open_cache(path).read_encoded(np.arange(COUNT), view).numpy().view("<f4").astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = odds / odds.sum(axis=1, keepdims=True)
    return -(p * np.log(p)).sum(axis=1), p.max(axis=1), p.argmax(axis=1)


def read(path: Path) -> int:
    """Number of rows that the statistics had to be read from."""
    rows: list[int] = []
    found = open_cache(path).statistics(rows.append)
    for view in range(2):
        for array, expected in zip(vars(found).values(), plain(path, view), strict=True):
            np.testing.assert_allclose(array[:, view], expected, rtol=1e-5, atol=1e-6)
    return sum(rows)


def test_they_equal_a_plain_computation_and_are_kept_beside_the_cache(path: Path) -> None:
    assert read(path) == 2 * COUNT
    assert (path.parent / PLACE).is_file()
    assert read(path) == 0
    labels = digits(COUNT).targets
    agrees = open_cache(path).statistics().agrees(np.where(np.arange(COUNT) == 3, -1, labels))
    for view in range(2):
        expected = (plain(path, view)[2] == labels) | (np.arange(COUNT) == 3)
        assert (agrees[:, view] == expected).all()


@pytest.mark.parametrize("fault", ["another cache", "cut", "empty", "no tensors", "another shape", "a folder"])
def test_what_is_not_of_this_cache_is_computed_again(path: Path, fault: str) -> None:
    assert read(path) == 2 * COUNT
    place = path.parent / PLACE
    whole = place.read_bytes()
    with safe_open(place, framework="np") as file:
        origin = file.metadata()
    assert (origin["identity"], origin["num_views"]) == (CachedTeacher(path).identity, "2")
    if fault == "another cache":
        build_cache(
            create_teacher(tiny_model(seed=1)),
            digits_dataset(COUNT),
            path.with_name("o.h5"),
            BuildConfig(num_workers=0),
        )
        open_cache(path.with_name("o.h5")).statistics()
        place.write_bytes(path.with_name("o.h5.statistics.safetensors").read_bytes())
    elif fault in ("cut", "empty"):
        place.write_bytes(whole[: len(whole) // 2] if fault == "cut" else b"")
    elif fault == "a folder":
        place.unlink()
        place.mkdir()
    else:
        array = np.zeros((2, 2), np.float32)
        names = () if fault == "no tensors" else ("entropy", "top1_probability", "top1_class")
        save_file(dict.fromkeys(names, array) or {"x": array}, place, origin)
    assert read(path) == 2 * COUNT
    assert read(path) == (2 * COUNT if fault == "a folder" else 0)


def test_statistics_of_other_rows_under_the_same_name_and_identity_are_computed_again(tmp_path: Path) -> None:
    """As of replaced images: metadata and keys agree, the rows do not."""
    identities = set()
    for seed in range(2):
        path = tmp_path / "t.h5"
        path.unlink(missing_ok=True)
        spec = CacheSpec(keys=list("abcd"), num_views=1, codecs={"logits": create_codec("float32", 3)})
        logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        with CacheWriter.create(path, spec) as writer:
            for shard in writer.missing():
                writer.write(shard, {"logits": logits})
            writer.finish()
        identities.add(open_cache(path).identity)
        found = open_cache(path).statistics().top1_probability[:, 0]
        np.testing.assert_allclose(found, logits.softmax(1).max(1).values, rtol=1e-5)
    assert len(identities) == 1


def test_a_cache_of_features_has_no_statistics(tmp_path: Path) -> None:
    config = BuildConfig(num_workers=0, streams=("pooled",))
    build_cache(create_teacher(tiny_model()), digits_dataset(4, RECIPE), tmp_path / "f.h5", config)
    with pytest.raises(CacheStreamError, match="no stream 'logits'"):
        open_cache(tmp_path / "f.h5").statistics()


def test_a_multi_label_cache_has_no_statistics(tmp_path: Path) -> None:
    labels = np.eye(10, dtype=np.float32)[[0, 1, 2, 3]]
    dataset = ReplayedDataset(MultiLabelSource(digits(4), labels, class_names=CLASSES), RECIPE)
    build_cache(create_teacher(tiny_model()), dataset, tmp_path / "m.h5", BuildConfig(num_workers=0))
    with pytest.raises(ConfigError, match=r"^the cache '.*m\.h5' is multi-label, so it has no likeliest class.*$"):
        open_cache(tmp_path / "m.h5").statistics()
    assert not list(tmp_path.glob("*.safetensors"))
