"""A run resumes with the labels, the classes and their order that it was started with, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import digits_dataset, tiny_model, write_digits

from kdkit import build_cache, create_teacher, open_dataset
from kdkit.building.config import BuildConfig
from kdkit.config import TeacherConfig
from kdkit.errors import CheckpointError, KdkitError
from kdkit.recipe import ViewRecipe
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.distill import distill
from kdkit.training.labels import LabelRecord

COUNT = 24
RECIPE = ViewRecipe(size=32)
WAYS = ("labels", "live", "cached")


def write_table(folder: Path, labels: list[str]) -> None:
    paths = sorted(path.relative_to(folder) for path in (folder / "images").rglob("*.png"))
    rows = [f"{path},{label}\n" for path, label in zip(paths, labels, strict=True)]
    (folder / "table.csv").write_text("path,label\n" + "".join(rows))


def names(folder: Path) -> list[str]:
    """The class of each image of the folder, in the order of the table."""
    return [f"class {path.parent.name}" for path in sorted((folder / "images").rglob("*.png"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with a table of labels, a teacher, its cache, and a finished run of each way to train."""
    folder = tmp_path_factory.mktemp("resume")
    write_digits(folder / "images", COUNT)
    write_table(folder, names(folder))
    save_file(tiny_model(seed=1).state_dict(), folder / "teacher.safetensors")
    dataset = open_dataset(str(folder / "table.csv"), recipe=RECIPE)
    build_cache(create_teacher(tiny_model(seed=1)), dataset, folder / "t.h5", BuildConfig(num_workers=0))
    for way in WAYS:
        distill(config(folder, way))
    return folder


def config(folder: Path, way: str, **changes: Any) -> DistillConfig:
    parts: dict[str, dict[str, Any]] = {
        "labels": {"recipe": RECIPE},
        "live": {
            "recipe": RECIPE,
            "teacher": TeacherConfig("test_resnet", checkpoint=str(folder / "teacher.safetensors")),
        },
        "cached": {"cache": str(folder / "t.h5")},
    }
    return DistillConfig(
        data=str(folder / "table.csv"),
        output=str(folder / way),
        student="test_resnet",
        train=TrainConfig(epochs=1, batch_size=8, num_workers=0),
        **parts[way],
        **changes,
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_finished_run_resumes_with_the_labels_it_was_made_with(folder: Path, way: str) -> None:
    assert distill(config(folder, way, resume=True)).training.epochs


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda label: "a new class" if label == "class 3" else label, r"class_names"),
        (lambda label: "class 3" if label == "class 4" else label, r"class_names|the data has 9"),
        (lambda label: {"class 3": "class 4", "class 4": "class 3"}.get(label, label), r"label 3 for 'images/3/"),
    ],
)
def test_a_run_with_other_classes_or_labels_is_refused_by_the_first_difference(
    folder: Path, way: str, change: Any, difference: str
) -> None:
    write_table(folder, [change(label) for label in names(folder)])
    try:
        with pytest.raises(KdkitError, match=difference) as caught:
            distill(config(folder, way, resume=True))
        assert "\n" not in str(caught.value)
    finally:
        write_table(folder, names(folder))


@pytest.mark.parametrize("way", WAYS)
def test_one_label_of_another_image_is_enough(folder: Path, way: str) -> None:
    labels = names(folder)
    place = next(i for i, label in enumerate(labels) if label == "class 7")
    labels[place] = "class 2"
    write_table(folder, labels)
    try:
        with pytest.raises(KdkitError, match=r"was made with the label 7 for 'images/7/.*', this run has 2: resume"):
            distill(config(folder, way, resume=True))
    finally:
        write_table(folder, names(folder))


def test_the_first_class_that_differs_is_named_with_its_place(folder: Path) -> None:
    write_table(folder, ["class z" if label == "class 3" else label for label in names(folder)])
    try:
        expected = r"was made with class_names\[3\] = 'class 3', this run has 'class 4': resume with the same"
        with pytest.raises(KdkitError, match=expected):
            distill(config(folder, "labels", resume=True))
    finally:
        write_table(folder, names(folder))


def test_labels_take_little_room_and_odd_ones_in_a_checkpoint_are_refused(tmp_path: Path) -> None:
    dataset = digits_dataset(100)
    record = LabelRecord.of(dataset)
    assert record.packed is not None
    assert len(record.packed) < 100
    assert torch.load(_saved(tmp_path, record.packed), weights_only=True) == record.packed
    for odd in (b"", b"no labels", 5, "text", record.packed[:-9]):
        with pytest.raises(CheckpointError, match="holds no labels of these 100 images"):
            record.check_same(odd, tmp_path / "last.pth.tar")
    record.check_same(None, tmp_path / "last.pth.tar")  # of a version that did not keep them
    assert np.array_equal(dataset.targets, digits_dataset(100).targets)  # type: ignore[arg-type]


def _saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "content.pt")
    return folder / "content.pt"


@pytest.mark.slow
def test_a_run_under_another_hash_seed_has_the_same_classes_and_resumes(tmp_path: Path) -> None:
    """Names that differ only in case or leading zeros had another order under another PYTHONHASHSEED."""
    images = sorted(write_digits(tmp_path / "d", 12).rglob("*.png"))
    for name, image in zip(["A", "a", "01", "1", "b", "B"], images, strict=False):
        (tmp_path / "data" / name).mkdir(parents=True)
        for copy in (0, 1):
            (tmp_path / "data" / name / f"{copy}.png").write_bytes(image.read_bytes())
    arguments = ["distill", str(tmp_path / "data"), "--student", "test_resnet", "--size", "32", "--epochs", "1"]
    arguments += ["--batch-size", "4", "--workers", "0", "-o", str(tmp_path / "run")]
    described = []
    for seed, more in (("1", []), ("7", ["--resume"]), ("123", ["--resume"])):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-m", "kdkit", *arguments, *more], env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr[-2000:]
        described.append((tmp_path / "run" / "student.json").read_text())
    assert len(set(described)) == 1
