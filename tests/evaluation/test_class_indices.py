"""Class indices without names on one side and names on the other: refused where their order cannot be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny_model

from kdkit import build_cache, create_teacher, open_dataset
from kdkit.building.config import BuildConfig
from kdkit.config import TeacherConfig
from kdkit.errors import ClassMismatchError, ConfigError
from kdkit.evaluation.config import EvaluateConfig, TeachersCheckConfig
from kdkit.evaluation.student import evaluate_student
from kdkit.evaluation.teacher import check_named_teacher
from kdkit.recipe import ViewRecipe
from kdkit.resolve import resolve_teacher
from kdkit.student import Student
from kdkit.teachers import Teacher
from kdkit.teachers.class_indices import is_tellable
from kdkit.teachers.imagenet import synsets
from kdkit.training.config import DistillConfig, ExportConfig, TrainConfig
from kdkit.training.distill import distill
from kdkit.training.export import export_student

NAMES = ("owl", "cat", "dog")
UNKNOWN = "cannot be told; give "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in class folders, the same in a table of class indices, and a run and an export with and without names."""
    folder = tmp_path_factory.mktemp("indices")
    random, rows = np.random.default_rng(0), []
    for label, name in enumerate(sorted(NAMES)):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(2):
            path = folder / "images" / name / f"{number}.png"
            Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
            rows.append(f"images/{name}/{number}.png,{label}\n")
    (folder / "indices.csv").write_text("path,label\n" + "".join(rows))
    for place, names in (("named", NAMES), ("nameless", None)):
        (folder / place).mkdir()
        Student("test_resnet", {"num_classes": 3}, 32, 1.0, "bilinear", names).write(folder / place)
        torch.save({"state_dict": tiny_model(num_classes=3).state_dict()}, folder / place / "last.pth.tar")
        export_student(ExportConfig(student=str(folder / place), output=str(folder / f"{place}_export")))
    (folder / "map.json").write_text(json.dumps([1, 2, 0]))
    return folder


def evaluate(folder: Path, student: str, data: str, *class_names: str) -> float:
    given = class_names or None
    config = EvaluateConfig(student=str(folder / student), data=str(folder / data), num_workers=0, class_names=given)
    return evaluate_student(config).loss


def check(folder: Path, teacher: str, data: str, class_map: str | None = None) -> None:
    named = TeacherConfig(str(folder / teacher), class_map=class_map)
    check_named_teacher(TeachersCheckConfig(teacher=named, data=str(folder / data), num_workers=0))


def build_with(teacher: Teacher, folder: Path, data: str) -> None:
    (folder / "t.h5").unlink(missing_ok=True)
    dataset = open_dataset(str(folder / data), recipe=ViewRecipe(size=32))
    build_cache(teacher, dataset, folder / "t.h5", BuildConfig(num_workers=0), device="cpu")


def build(folder: Path, teacher: str, data: str, class_map: str | None = None) -> None:
    named = TeacherConfig(str(folder / teacher), class_map=class_map)
    build_with(resolve_teacher(named, torch.device("cpu")), folder, data)


def teach(folder: Path, teacher: str, data: str, class_map: str | None = None) -> None:
    live = TeacherConfig(str(folder / teacher), class_map=class_map)
    train = TrainConfig(epochs=1, num_workers=0, batch_size=6)
    shared: dict[str, Any] = {"student": "test_resnet", "recipe": ViewRecipe(size=32), "overwrite": True}
    distill(DistillConfig(data=str(folder / data), output=str(folder / "run"), teacher=live, train=train, **shared))


@pytest.mark.parametrize("kind", ["", "_export"])
@pytest.mark.parametrize(
    ("model", "data", "problem"),
    [
        ("named", "indices.csv", r"class indices, and the classes of the student .* have names \(owl, cat, dog\)"),
        ("nameless", "images", r"names its classes \(cat, dog, owl\), and the student .* was trained without names"),
    ],
)
def test_a_student_is_evaluated_by_names_that_are_given_where_one_side_has_indices_alone(
    folder: Path, model: str, data: str, problem: str, kind: str
) -> None:
    with pytest.raises(ClassMismatchError, match=rf"{problem}.*{UNKNOWN}.*--class-names"):
        evaluate(folder, model + kind, data)
    names = sorted(NAMES) if model == "named" else NAMES
    by_name = evaluate(folder, f"named{kind}", "images")
    assert evaluate(folder, model + kind, data, *names) == pytest.approx(by_name, rel=1e-5)
    with pytest.raises(ClassMismatchError, match=r"'fox'|'owl'"):
        evaluate(folder, model + kind, data, "fox", "cat", "dog")


def test_names_are_not_given_twice_and_indices_on_both_sides_need_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both name their classes: leave out class_names"):
        evaluate(folder, "named", "images", *NAMES)
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n")
    plain = evaluate(folder, "nameless", "indices.csv")
    assert evaluate(folder, "nameless", "indices.csv", str(tmp_path / "names.txt")) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("use", [check, build, teach])
@pytest.mark.parametrize(("model", "data"), [("named", "indices.csv"), ("nameless", "images")])
def test_a_teacher_of_a_run_needs_a_class_map_where_one_side_has_indices_alone(
    folder: Path, use: Any, model: str, data: str
) -> None:
    with pytest.raises(ClassMismatchError, match=f"{UNKNOWN}.*a class_map of the teacher"):
        use(folder, model, data)
    use(folder, model, data, str(folder / "map.json"))


def test_a_model_of_unknown_origin_without_names_teaches_in_its_own_order(folder: Path) -> None:
    build_with(create_teacher(tiny_model(num_classes=3)), folder, "images")


@pytest.mark.parametrize(
    ("names", "is_known"),
    [(["0", "1"], True), (["1", "0"], False), (["a", "b"], False), (synsets("imagenet-1k"), True)],
)
def test_indices_mean_classes_that_are_named_by_their_places_or_an_imagenet_family(
    names: list[str], is_known: bool
) -> None:
    assert is_tellable(names) == is_known
    assert not is_known or not is_tellable(list(names)[::-1])
