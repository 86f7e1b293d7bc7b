"""Fault 26, documents: any field of another type, out of range or missing is a KdkitError, whatever is then done."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import malice
import numpy as np
import pytest
from support import Pixels, digits_dataset

from kdkit import build_cache, open_cache
from kdkit.building.config import BuildConfig
from kdkit.building.verify import verify_cache
from kdkit.errors import CacheCorruptError, KdkitError
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher

CONFIG = BuildConfig(codec="lowrank", codec_options={"row_bytes": 6}, num_workers=0)
ODD: list[Any] = [None, True, 0, -1, 3, 1.5, float("nan"), 2**70, "", "x", [], [1], {}, {"a": 1}, [[]], [None], ["a"]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "t.h5"
    build_cache(Teacher(Pixels()), digits_dataset(20), path, CONFIG)
    return path


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of a document is."""
    members = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for name, member in members:
        yield (*place, name)
        yield from places(member, (*place, name))


def changed(document: dict[str, Any], draw: random.Random) -> tuple[dict[str, Any], str]:
    """The document with one value replaced or removed, and what was done."""
    document = copy.deepcopy(document)
    place, odd = draw.choice(list(places(document))), draw.choice([*ODD, "removed", "removed"])
    owner: Any = document
    for name in place[:-1]:
        owner = owner[name]
    if odd == "removed":
        del owner[place[-1]]
    else:
        owner[place[-1]] = odd
    return document, f"{place} = {odd!r}"


def look_at_everything(path: Path) -> None:
    cache = open_cache(path)
    cache.summary()
    cache.keys()
    cache.verify()
    cache.read_encoded(np.arange(3), 1)


USES: dict[str, Callable[[Path], object]] = {
    "look": look_at_everything,
    "train": lambda path: open_cache(path, digits_dataset(20)),
    "recipe": lambda path: ViewRecipe.from_dict(open_cache(path).metadata.recipe),
    "verify": lambda path: verify_cache(path, Teacher(Pixels()), digits_dataset(20), num_rows=2),
    "build": lambda path: build_cache(Teacher(Pixels()), digits_dataset(20), path, CONFIG),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kdkit", "kdkit_arrays"])
def test_fault_26_a_document_with_any_odd_value_never_raises_anything_but_our_own_errors(
    built: Path, tmp_path: Path, name: str
) -> None:
    with h5py.File(built) as file:
        document = json.loads(file.attrs[name])
    draw, refused = random.Random(0), 0
    for _ in range(20):
        shutil.copy(built, tmp_path / "t.h5")
        odd, what = changed(document, draw)
        with h5py.File(tmp_path / "t.h5", "r+") as file:
            malice.set_document(file, name, json.dumps(odd))
        for use, call in USES.items():
            try:
                call(tmp_path / "t.h5")
            except KdkitError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{use} with {what}") from error
    assert refused > 20


@pytest.mark.parametrize(
    "dataset",
    [
        {"keys_sha256": ""},
        {"keys_sha256": "", "class_names": []},
        {"keys_sha256": "", "class_names": None, "versions": 3},
    ],
)
def test_fault_26_a_dataset_described_otherwise_than_a_build_does_is_refused(
    built: Path, tmp_path: Path, dataset: dict[str, Any]
) -> None:
    shutil.copy(built, tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        malice.metadata(dataset=dataset)(file, tmp_path)
    with pytest.raises(CacheCorruptError, match=r"dataset: (class_names|versions) is"):
        open_cache(tmp_path / "t.h5")


@pytest.mark.parametrize("recipe", [{"size": "large"}, {"scale": []}, {"scale": 3}, {"mixup_alpha": [[]]}])
def test_fault_26_a_recipe_of_other_types_is_refused_when_it_is_used(recipe: dict[str, Any]) -> None:
    with pytest.raises(KdkitError, match="has the wrong type"):
        ViewRecipe.from_dict(recipe)
