"""Training on a part of the classes or of the images of a cache."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import RECIPE, tiny_model, write_digits

from kdkit import build_cache, create_teacher, open_dataset
from kdkit.building.config import BuildConfig
from kdkit.cli import main
from kdkit.errors import ConfigError
from kdkit.student import Student
from kdkit.training.selection import draw_fraction

COUNT = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as class folders, `data`, with a cache of them, `t.h5`, and held-out digits, `val`."""
    folder = tmp_path_factory.mktemp("part")
    write_named(folder / "data", COUNT)
    write_named(folder / "val", 30)
    dataset = open_dataset(folder / "data", recipe=RECIPE)
    build_cache(create_teacher(tiny_model()), dataset, folder / "t.h5", BuildConfig(codec="float32", num_workers=0))
    return folder


def write_named(root: Path, count: int) -> Path:
    """The first `count` digits as an image folder, d0/000.png and so on: names that a table keeps as names."""
    for place in write_digits(root, count).iterdir():
        place.rename(root / f"d{place.name}")
    return root


def distill(folder: Path, data: Path, output: Path, *options: str) -> int:
    fixed = ["--student", "test_resnet", "--epochs", "1", "--batch-size", "8", "--workers", "0", "--device", "cpu"]
    return main(["distill", str(data), "--cache", str(folder / "t.h5"), *fixed, *options, "-o", str(output)])


def test_a_fraction_is_stratified_nested_and_independent_of_the_order() -> None:
    rng = np.random.default_rng(0)
    targets = rng.permutation(np.repeat([0, 1, 2], [300, 90, 10]))
    keys = [f"k{row}" for row in range(400)]
    drawn = {fraction: set(draw_fraction(keys, targets, fraction, 0)) for fraction in (0.1, 0.25, 0.5, 1)}
    for fraction, rows in drawn.items():
        assert len(rows) == round(400 * fraction)
        counts = np.bincount(targets[sorted(rows)], minlength=3)
        assert np.abs(counts - fraction * np.array([300, 90, 10])).max() <= 1
    assert drawn[0.1] < drawn[0.25] < drawn[0.5] < drawn[1]
    order = rng.permutation(400)
    moved = draw_fraction([keys[row] for row in order], targets[order], 0.25, 0)
    assert {keys[order[row]] for row in moved} == {keys[row] for row in drawn[0.25]}
    assert set(draw_fraction(keys, targets, 0.25, 1)) != drawn[0.25]
    assert len(draw_fraction(keys, None, 0.25, 0)) == 100
    with pytest.raises(ConfigError, match="less than one image"):
        draw_fraction(keys, targets, 0.001, 0)


@pytest.mark.parametrize("kind", ["fraction", "folder", "list"])
def test_a_part_of_the_images_trains_and_the_header_says_how_many(
    folder: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--train.fraction", "0.5", "--train.fraction-seed", "3"] if kind == "fraction" else []
    data = folder / "data"
    if kind == "folder":
        data = write_named(tmp_path / "part", 30)
    if kind == "list":
        with open(folder / "data" / "half.csv", "w", newline="") as file:
            images = sorted((folder / "data").rglob("*.png"))[::2]
            rows = [[str(image.relative_to(folder / "data")), image.parent.name] for image in images]
            csv.writer(file).writerows([["path", "label"], *rows])
        data = folder / "data" / "half.csv"
    assert distill(folder, data, tmp_path / "run", *options) == 0
    assert "30 of 60 cached images, 10 classes" in " ".join(capsys.readouterr().err.split())


def test_more_images_than_the_cache_holds_are_refused_with_the_command_that_adds_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_named(tmp_path / "more", COUNT + 3)
    assert distill(folder, tmp_path / "more", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "3 of 63 samples are not in it" in error
    assert f"kdkit cache extend {folder / 't.h5'} DATA" in error


@pytest.mark.parametrize("form", ["list", "lines", "json"])
def test_a_part_of_the_classes_trains_in_one_option(
    folder: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["d4", "d1", "d8"]
    (tmp_path / "names.txt").write_text("\n".join(chosen) + "\n")
    (tmp_path / "names.json").write_text(json.dumps(chosen))
    given = {"list": chosen, "lines": [str(tmp_path / "names.txt")], "json": [str(tmp_path / "names.json")]}[form]
    options = ["--class-names", *given, "--val", str(folder / "val")]
    assert distill(folder, folder / "data", tmp_path / "run", *options) == 0
    assert Student.read(tmp_path / "run").class_names == tuple(chosen)
    assert Student.read(tmp_path / "run").model_args["num_classes"] == 3
    few = sum(len(list((folder / "val" / name).iterdir())) for name in chosen)
    assert main(["evaluate", str(tmp_path / "run"), str(folder / "val"), "--workers", "0", "--device", "cpu"]) == 0
    assert f"{few} images" in " ".join(capsys.readouterr().out.split())


def test_a_class_map_names_the_classes_of_the_cache_for_those_of_the_data(folder: Path, tmp_path: Path) -> None:
    names = {"d4": "four", "d1": "one"}
    images = [image for name in names for image in sorted((folder / "data" / name).iterdir())]
    with open(folder / "data" / "named.csv", "w", newline="") as file:
        rows = [[f"{image.parent.name}/{image.name}", names[image.parent.name]] for image in images]
        csv.writer(file).writerows([["path", "label"], *rows])
    (tmp_path / "map.json").write_text(json.dumps(["d4", "d1"]))
    data = folder / "data" / "named.csv"
    assert distill(folder, data, tmp_path / "run", "--class-map", str(tmp_path / "map.json")) == 0
    assert Student.read(tmp_path / "run").class_names == ("four", "one")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--class-names", "d1", "x"], "has no class 'x'"),
        (["--class-names", "missing.txt"], "class_names must be at least 2 names, or a file of names"),
        (["--class-map", "missing.json"], "there is no file 'missing.json'"),
        (["--train.fraction", "0"], "fraction must be above 0 and at most 1, got 0.0"),
        (["--train.fraction", "1.5"], "fraction must be above 0 and at most 1, got 1.5"),
        (["--train.fraction", "0.001"], "less than one image"),
    ],
)
def test_what_cannot_be_chosen_is_refused_in_one_line(
    folder: Path, tmp_path: Path, options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill(folder, folder / "data", tmp_path / "run", *options) == 1
    error: Any = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
