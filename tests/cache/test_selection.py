"""A part of a cache's classes, compared with a plain NumPy computation on the rows of all classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import CLASSES, RECIPE, digits, digits_dataset, tiny_model

from kdkit import ViewRecipe, build_cache, create_loader, create_teacher, open_cache, open_dataset
from kdkit.building.config import BuildConfig
from kdkit.cache import CacheReader, CacheSpec, CacheWriter, ClassSelection, create_codec
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.data.sources.classes import ClassesSource
from kdkit.data.sources.selection import Unlabelled
from kdkit.errors import CacheMismatchError, ClassMismatchError, ConfigError, DatasetError, KdkitError

EXACT = BuildConfig(codec="float32", num_workers=0, batch_size=64, streams=("logits", "pooled"))
COUNT = 40
CHOSEN = ["7", "2", "9"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches a.h5 and b.h5 of two teachers of ten classes on the same views."""
    folder = tmp_path_factory.mktemp("selection")
    for seed, name in enumerate("ab"):
        build_cache(create_teacher(tiny_model(seed=seed)), digits_dataset(COUNT), folder / f"{name}.h5", EXACT)
    return folder


def all_probabilities(path: Path, view: int) -> dict[str, Any]:
    """Key -> softmax of the cached row over all classes, float64 [10], from the bytes of the float32 codec."""
    cache = open_cache(path)
    logits = cache.read_encoded(np.arange(COUNT), view).numpy().view("<f4").astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return dict(zip(cache.keys(), odds / odds.sum(axis=1, keepdims=True), strict=True))


def expected_rows(folder: Path, names: str, keys: list[str], columns: list[int], view: int) -> Any:
    """Log-probabilities of the mean of the caches `names` over `columns`, renormalised, float64 [N, C]."""
    mean = dict.fromkeys(keys, 0.0)
    for name in names:
        found = all_probabilities(folder / f"{name}.h5", view)
        mean = {key: mean[key] + found[key] / len(names) for key in keys}
    chosen = np.stack([mean[key] for key in keys])[:, columns]
    return np.log(chosen / chosen.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("names", ["a", "ab"])
def test_the_chosen_classes_are_renormalised_their_images_kept_and_their_labels_renumbered(
    folder: Path, names: str
) -> None:
    paths: Any = [folder / f"{name}.h5" for name in names] if len(names) > 1 else folder / f"{names}.h5"
    cache: CacheReader = open_cache(paths, class_names=CHOSEN)
    dataset = open_dataset(digits(COUNT), cache=cache)
    source = digits(COUNT)
    kept = [row for row in range(COUNT) if CLASSES[source.targets[row]] in CHOSEN]
    assert list(dataset.keys) == [source.keys[row] for row in kept]
    assert (list(dataset.class_names or ()), cache.num_classes, list(cache.class_names or ())) == (CHOSEN, 3, CHOSEN)
    columns = [7, 2, 9]
    seen = 0
    for batch in create_loader(dataset, tiny_model(num_classes=3), batch_size=4, num_workers=0):
        assert batch.row is not None
        keys = [dataset.keys[row] for row in batch.row.tolist()]
        labels = [source.targets[source.keys.index(key)] for key in keys]
        assert batch.target.tolist() == [columns.index(label) for label in labels]
        output = cache(batch)
        expected = expected_rows(folder, names, keys, columns, view=0)
        np.testing.assert_allclose(output.logits, expected, rtol=0, atol=1e-5)  # type: ignore[arg-type]
        assert set(output.features) == ({"pooled"} if names == "a" else {"0:pooled", "1:pooled"})
        seen += len(keys)
    assert seen == len(kept) // 4 * 4


def test_a_class_map_takes_the_classes_of_data_that_names_them_otherwise(folder: Path) -> None:
    source = digits(COUNT)
    rows = [row for row in range(COUNT) if source.targets[row] in (3, 5)]
    data = ArraySource(
        source.images[rows],
        np.array([[5, 3].index(source.targets[row]) for row in rows]),
        keys=[source.keys[row] for row in rows],
        class_names=["five", "three"],
    )
    for chosen in ([5, 3], ["5", "3"]):
        cache = open_cache(folder / "a.h5", class_names=["five", "three"], class_map=chosen)
        dataset = open_dataset(data, cache=cache)
        batch = next(iter(create_loader(dataset, tiny_model(), batch_size=len(rows), shuffle=False, num_workers=0)))
        expected = expected_rows(folder, "a", list(dataset.keys), [5, 3], view=0)
        np.testing.assert_allclose(cache(batch).logits, expected, rtol=0, atol=1e-5)  # type: ignore[arg-type]
    assert open_cache(folder / "a.h5", class_map=[5, 3]).class_names == ["5", "3"]


def test_the_identity_depends_on_the_chosen_classes_and_their_order(folder: Path) -> None:
    readers = [open_cache(folder / "a.h5", class_names=names) for names in (["1", "2"], ["2", "1"], ["1", "3"])]
    assert len({reader.identity for reader in readers}) == 3


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"class_names": ["1", "x"]}, ClassMismatchError, r"a\.h5' has no class for 1 of the 2 chosen classes: 'x'"),
        ({"class_map": [1, 10]}, ClassMismatchError, r"has classes 0 to 9, got 10"),
        ({"class_map": [1, -1]}, ClassMismatchError, r"has classes 0 to 9, got -1"),
        ({"class_map": [1, 1]}, ConfigError, "class_map must have each class once, got 1 more than once"),
        ({"class_names": ["1", "1"]}, ConfigError, "class_names must have each class once, got '1'"),
        ({"class_names": ["1"]}, ConfigError, "at least 2 classes"),
        ({"class_names": "12"}, ConfigError, "class_names must be a list of classes, got '12'"),
        ({"class_map": [1, "2"]}, ConfigError, "all names or all indices"),
        ({"class_map": [True, False]}, ConfigError, "all names or all indices"),
        ({"class_names": ["a"] * 3, "class_map": [1, 2]}, ConfigError, "class_map has 2 classes, class_names 3"),
        ({"class_names": ["1", "2"], "sparse": True}, ConfigError, "sparse"),
    ],
)
def test_classes_that_do_not_fit_are_refused_in_one_line(
    folder: Path, options: dict[str, Any], error: type[KdkitError], reason: str
) -> None:
    with pytest.raises(error, match=reason) as raised:
        open_cache(folder / "a.h5", **options)
    assert "\n" not in str(raised.value)


def test_a_dataset_of_all_classes_is_refused_with_the_way_to_open_it(folder: Path) -> None:
    with pytest.raises(CacheMismatchError, match=r"'0', '1'.* and 5 more, .*are '7', '2', '9': open the data with"):
        open_cache(folder / "a.h5", digits_dataset(COUNT), class_names=CHOSEN)


def test_a_cache_without_class_names_takes_indices_alone(tmp_path: Path) -> None:
    spec = CacheSpec(keys=["one"], num_views=1, codecs={"logits": create_codec("float32", 4)})
    with CacheWriter.create(tmp_path / "t.h5", spec) as writer:
        for shard in writer.missing():
            writer.write(shard, {"logits": torch.tensor([[0.0, 1.0, 2.0, 3.0]])})
        writer.finish()
    assert isinstance(open_cache(tmp_path / "t.h5", class_map=[3, 1]), ClassSelection)
    with pytest.raises(ClassMismatchError, match=r"does not name its classes: choose them by index, class_map="):
        open_cache(tmp_path / "t.h5", class_names=["a", "b"])


def test_mixed_views_of_a_part_of_the_classes_are_refused(tmp_path: Path) -> None:
    mixed = ViewRecipe.preset("funmatch", size=32, num_views=1, seed=3)
    build_cache(create_teacher(tiny_model()), digits_dataset(20, mixed), tmp_path / "m.h5", EXACT)
    with pytest.raises(CacheMismatchError, match=r"mixes each image with another, and 1[0-9] of its 20 images"):
        open_dataset(digits(20), cache=open_cache(tmp_path / "m.h5", class_names=CHOSEN))


def test_labels_without_names_are_not_taken_for_the_chosen_classes(folder: Path) -> None:
    source = digits(COUNT)
    unnamed = ReplayedDataset(ArraySource(source.images, source.targets, keys=source.keys), RECIPE)
    cache = open_cache(folder / "a.h5", class_names=list(reversed(CLASSES)))
    with pytest.raises(CacheMismatchError, match=r"does not name its classes.*open_dataset\(DATA, cache=cache\)"):
        cache.match(unnamed)
    assert list(open_dataset(unnamed.source, cache=cache).class_names or ()) == list(reversed(CLASSES))


@pytest.mark.parametrize(
    ("names", "chosen", "error"),
    [
        (["a", "b", "c"], ["a", "b", "a"], ConfigError),
        (["a", "b", "c"], "ba", ConfigError),
        (["a", "b", "c"], [0, 1], ConfigError),
        (["a", "b", "a"], ["a", "b"], ClassMismatchError),
    ],
)
def test_classes_of_a_source_that_cannot_be_chosen_are_one_line(
    names: list[str], chosen: Any, error: type[KdkitError]
) -> None:
    source = ArraySource(np.zeros((3, 8, 8), "u1"), [0, 1, 2])
    source.class_names = names  # as those of ImageNet in torchvision, of which two are "crane"
    with pytest.raises(error) as raised:
        ClassesSource(source, chosen)
    assert "\n" not in str(raised.value)


def test_a_class_is_chosen_in_any_unicode_form() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    source = ArraySource(np.zeros((2, 8, 8), "u1"), [0, 1], class_names=[composed, "tea"])
    assert list(ClassesSource(source, [decomposed, "tea"]).targets) == [0, 1]


def test_a_source_keeps_its_unlabelled_images_and_refuses_classes_that_it_lacks() -> None:
    source = digits(COUNT)
    assert len(ClassesSource(Unlabelled(source), CHOSEN)) == COUNT
    with pytest.raises(ClassMismatchError, match="has no class 'x', 'y'"):
        ClassesSource(source, ["1", "x", "y"])
    unnamed = ArraySource(source.images, source.targets, keys=source.keys)
    assert ClassesSource(unnamed, CHOSEN, CLASSES).keys == ClassesSource(source, CHOSEN).keys
    with pytest.raises(ClassMismatchError, match="does not name its classes"):
        ClassesSource(unnamed, CHOSEN)
    with pytest.raises(DatasetError, match="no image of the chosen classes"):
        ClassesSource(digits(3), ["5", "6"])
