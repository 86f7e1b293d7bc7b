"""Classes of students and teachers that are evaluated: matched with the data's by name, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support import CLASSES, tiny_model, write_digits
from timm.models import save_for_hf

from kdkit import LogitDistillationTask, create_teacher, open_dataset
from kdkit.cli import main
from kdkit.config import TeacherConfig
from kdkit.data import create_loader
from kdkit.errors import ClassMismatchError, LabelError
from kdkit.evaluation.config import EvaluateConfig, TeachersCheckConfig
from kdkit.evaluation.student import evaluate_student
from kdkit.evaluation.teacher import check_named_teacher
from kdkit.recipe import ViewRecipe
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.distill import distill
from kdkit.training.preflight import preflight

COUNT = 40
REVERSED = CLASSES[::-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in class folders, an export whose classes are in the reverse order, and one with a class of its own."""
    folder = tmp_path_factory.mktemp("classes")
    write_digits(folder / "images", COUNT)
    model = reverse_head(tiny_model(seed=1))
    for name, classes in (("reversed", REVERSED), ("other", [*REVERSED[:9], "x"])):
        save_for_hf(model, folder / name, model_config={"label_names": classes}, safe_serialization=True)
    save_for_hf(tiny_model(seed=1), folder / "plain", safe_serialization=True)
    rows = [f"{path.relative_to(folder)},{path.parent.name}\n" for path in sorted((folder / "images").rglob("*.png"))]
    (folder / "table.csv").write_text("path,label\n" + "".join(rows))
    (folder / "odd.csv").write_text("path,label\n" + "".join(rows[:-1]) + rows[-1].replace(",9", ",12"))
    return folder


def reverse_head(model: torch.nn.Module) -> torch.nn.Module:
    head: Any = model.get_classifier()  # type: ignore[operator]
    for parameter in head.parameters():
        parameter.data = parameter.data.flip(0)
    return model


def evaluate(folder: Path, student: str, data: str = "images") -> float:
    config = EvaluateConfig(student=str(folder / student), data=str(folder / data), num_workers=0, input_size=32)
    return evaluate_student(config).loss


def check(folder: Path, teacher: str, data: str = "images") -> float:
    config = TeachersCheckConfig(teacher=TeacherConfig(str(folder / teacher)), data=str(folder / data), num_workers=0)
    return check_named_teacher(config).top1


def train(folder: Path, teacher: str, data: str) -> None:
    config = TrainConfig(epochs=1, num_workers=0)
    live = TeacherConfig(str(folder / teacher))
    output = str(folder / "run")
    distill(DistillConfig(data=str(folder / data), output=output, student="test_vit", teacher=live, train=config))


def test_an_export_with_the_classes_in_another_order_is_evaluated_by_name(folder: Path) -> None:
    assert evaluate(folder, "reversed") == pytest.approx(evaluate(folder, "plain"), rel=1e-5)
    assert check(folder, "reversed") == check(folder, "plain")


def test_images_of_classes_that_the_student_lacks_are_left_out_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = folder / "extra"
    shutil.copytree(folder / "images", extra)
    shutil.copytree(extra / "0", extra / "x")
    assert evaluate(folder, "reversed", "extra") == pytest.approx(evaluate(folder, "reversed"), rel=1e-5)
    count = len(list((extra / "x").iterdir()))
    expected = f"{count} of {COUNT + count} images are left out, because the student does not have their 1 classes"
    assert expected in caplog.text


def test_numbers_are_not_taken_for_classes_that_other_numbers_name(folder: Path) -> None:
    names = [str(number) for number in range(1, 11)]
    save_for_hf(tiny_model(seed=1), folder / "numbered", model_config={"label_names": names}, safe_serialization=True)
    for measure in (evaluate, check, train):
        with pytest.raises(ClassMismatchError, match=r"named by numbers \(1, 2, 3, 4, 5, \.\.\.\): which of the two"):
            measure(folder, "numbered", "table.csv")


@pytest.mark.parametrize("measure", [evaluate, check])
def test_other_classes_are_refused_by_the_first_difference(folder: Path, measure: Any) -> None:
    with pytest.raises(ClassMismatchError, match="has no class '0', which the data has"):
        measure(folder, "other")


@pytest.mark.parametrize("measure", [evaluate, check])
def test_labels_without_names_are_taken_as_indices_and_refused_out_of_range(folder: Path, measure: Any) -> None:
    assert measure(folder, "plain", "table.csv") == pytest.approx(measure(folder, "plain"), rel=1e-5)
    with pytest.raises(LabelError, match=r"the label of 'images/9/.*\.png' in? ?.*is 12: expected 0 to 9"):
        measure(folder, "plain", "odd.csv")


def test_a_single_folder_around_the_images_is_told_apart_from_missing_classes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    for path in (folder / "images" / "3").iterdir():
        (tmp_path / "data" / "images" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ClassMismatchError, match="'images': a single class teaches nothing; if its folder only holds"):
        evaluate(folder, "plain", str(tmp_path / "data"))
    with pytest.raises(ClassMismatchError, match="'images': a single class teaches nothing; if its folder only holds"):
        check(folder, "reversed", str(tmp_path / "data"))


def test_a_teacher_without_a_head_is_named_as_such(folder: Path, tmp_path: Path, capsys: Any) -> None:
    message = "has no head, and so no logits: take a teacher with a head, or a loss on features"
    with pytest.raises(ClassMismatchError, match=message):
        LogitDistillationTask(tiny_model(), tiny_model(num_classes=0))
    save_for_hf(tiny_model(num_classes=0), tmp_path / "headless", safe_serialization=True)
    shared = [str(folder / "images"), "--teacher", str(tmp_path / "headless"), "--workers", "0", "-o", str(tmp_path)]
    assert main(["cache", "build", *shared[:-1], str(tmp_path / "t.h5"), "--size", "32"]) == 1
    assert message in capsys.readouterr().err
    assert main(["distill", *shared[:-1], str(tmp_path / "run"), "--student", "test_resnet", "--size", "32"]) == 1
    assert message in capsys.readouterr().err


def test_the_preflight_refuses_a_live_teacher_whose_classes_are_in_another_order(folder: Path) -> None:
    dataset = open_dataset(str(folder / "images"), recipe=ViewRecipe(size=32))
    teacher = create_teacher(f"local-dir:{folder / 'reversed'}")
    config = TrainConfig(epochs=1, batch_size=8, num_workers=0)

    def check_first(task: LogitDistillationTask) -> None:
        preflight(task, create_loader(dataset, task, batch_size=8, num_workers=0), task.live_teacher, config)

    with pytest.raises(ClassMismatchError, match=r"in another order: pass teacher\.for_classes"):
        check_first(LogitDistillationTask(tiny_model(), teacher))
    check_first(LogitDistillationTask(tiny_model(), teacher.for_classes(CLASSES)))
    stranger = create_teacher(timm.create_model(f"local-dir:{folder / 'other'}", pretrained=True))
    with pytest.raises(ClassMismatchError, match="has no class '0', which the data has"):
        check_first(LogitDistillationTask(tiny_model(), stranger))


@pytest.mark.parametrize("command", ["cache build", "distill"])
def test_commands_match_a_teachers_classes_by_name_and_tell_it(
    folder: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *command.split(),
        str(folder / "images"),
        "--workers",
        "0",
        "--size",
        "32",
        "-o",
        str(tmp_path / "out"),
    ]
    arguments += ["--student", "test_resnet", "--epochs", "1", "--batch-size", "8"] if command == "distill" else []
    assert main([*arguments, "--teacher", str(folder / "reversed")]) == 0
    assert "its classes mapped to the data's: 0, 1, 2" in " ".join(capsys.readouterr().err.split())
    assert main([*arguments, "--teacher", str(folder / "other"), *(["--overwrite"] * (command == "distill"))]) == 1
    assert "has no class '0', which the data has" in capsys.readouterr().err
