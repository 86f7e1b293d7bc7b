"""Another teacher on the samples and views of a cache: the order, the recipe and the pixels are the cache's."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from support import CLASSES, RECIPE, digits, tiny_model, write_digits

from kdkit import build_cache, create_teacher, open_cache, open_dataset
from kdkit.building.config import BuildConfig
from kdkit.building.like import open_like
from kdkit.errors import CacheMismatchError
from kdkit.recipe import ViewRecipe

EXACT = BuildConfig(codec="float32", num_workers=0)
COUNT = 20
MIXED = ViewRecipe.preset("funmatch", size=32, num_views=2, seed=3)


def built(folder: Path, recipe: ViewRecipe = RECIPE) -> Path:
    """A folder of digits, `data`, and a cache of it, `a.h5`."""
    write_digits(folder / "data", COUNT)
    dataset = open_dataset(folder / "data", recipe=recipe)
    build_cache(create_teacher(tiny_model(seed=1)), dataset, folder / "a.h5", EXACT)
    return folder


@pytest.mark.parametrize("recipe", [RECIPE, MIXED])
def test_the_second_cache_equals_a_build_with_the_same_recipe(tmp_path: Path, recipe: ViewRecipe) -> None:
    folder, teacher = built(tmp_path, recipe), create_teacher(tiny_model(seed=2))
    build_cache(teacher, open_like(folder / "data", folder / "a.h5"), folder / "b.h5", EXACT)
    build_cache(teacher, open_dataset(folder / "data", recipe=recipe), folder / "plain.h5", EXACT)
    like, plain = open_cache(folder / "b.h5"), open_cache(folder / "plain.h5")
    assert like.identity == plain.identity
    assert like.keys() == open_cache(folder / "a.h5").keys()
    for view in range(2):
        rows = np.arange(COUNT)
        assert torch.equal(like.read_encoded(rows, view), plain.read_encoded(rows, view))


def test_images_in_another_order_or_besides_leave_samples_and_order_as_they_are(tmp_path: Path) -> None:
    folder = built(tmp_path)
    keys = open_cache(folder / "a.h5").keys()
    digits(COUNT)[0][0].save(folder / "data" / CLASSES[0] / "999.png")
    with open(folder / "data" / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([key, key.split("/")[0]] for key in reversed([*keys, "0/999.png"]))
    for data in (folder / "data", folder / "data" / "list.csv"):
        dataset = open_like(data, folder / "a.h5")
        assert list(dataset.keys) == keys
        assert [dataset[row, 0].target for row in range(COUNT)] == [int(key.split("/")[0]) for key in keys]


def test_a_replaced_a_missing_and_a_relabelled_image_are_refused(tmp_path: Path) -> None:
    folder = built(tmp_path)
    image = folder / "data" / "3" / "003.png"
    content = image.read_bytes()
    image.write_bytes((folder / "data" / "4" / "004.png").read_bytes())
    with pytest.raises(CacheMismatchError, match=r"another image under the name '3/003\.png'"):
        open_like(folder / "data", folder / "a.h5")
    image.unlink()
    with pytest.raises(CacheMismatchError, match=r"1 of 20 samples are missing now \('3/003\.png'\)"):
        open_like(folder / "data", folder / "a.h5")
    image.write_bytes(content)
    (folder / "data" / "extra").mkdir()
    (folder / "data" / "extra" / "0.png").write_bytes(content)
    with pytest.raises(CacheMismatchError, match="class_names"):
        open_like(folder / "data", folder / "a.h5")


def test_a_cache_of_unlabelled_images_gives_its_class_names_to_the_second(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    source = digits(COUNT)
    for row in range(COUNT):
        source[row][0].save(tmp_path / "flat" / f"{row:03d}.png")
    teacher = create_teacher(tiny_model(seed=1), class_names=CLASSES)
    build_cache(teacher, open_dataset(tmp_path / "flat", recipe=MIXED), tmp_path / "a.h5", EXACT)
    second = create_teacher(tiny_model(seed=2), class_names=CLASSES[::-1])
    dataset = open_like(tmp_path / "flat", tmp_path / "a.h5")
    assert dataset.class_names == CLASSES
    build_cache(second.for_classes(dataset.class_names), dataset, tmp_path / "b.h5", EXACT)
    mixed = open_cache([tmp_path / "a.h5", tmp_path / "b.h5"], open_dataset(tmp_path / "flat", recipe=MIXED))
    assert mixed.class_names == CLASSES
