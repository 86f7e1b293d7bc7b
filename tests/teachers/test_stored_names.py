"""Class names that a weights file of kdkit holds: they are those of its weights, wherever the file is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import tiny_model
from timm.models import save_for_hf

from kdkit import create_teacher
from kdkit.config import StudentConfig, TeacherConfig
from kdkit.errors import CheckpointError, ClassMismatchError
from kdkit.resolve import resolve_teacher
from kdkit.student import Student, load_student
from kdkit.teachers.starting_weights import create_student, load_body
from kdkit.teachers.weights import read_checkpoint

CPU = torch.device("cpu")
NAMES = ("owl", "cat", "dog")
SORTED = ("cat", "dog", "owl")


def write_run(folder: Path, stored: Any, described: tuple[str, ...] | None) -> Path:
    """A run's folder whose checkpoint holds the names `stored`, and its student.json the names `described`."""
    folder.mkdir()
    Student("test_resnet", {"num_classes": 3}, 32, 1.0, "bilinear", described).write(folder)
    own = {"config": {"class_names": stored}}
    path = folder / "last.pth.tar"
    torch.save({"state_dict": tiny_model(num_classes=3).state_dict(), "kdkit": own}, path)
    return path


def write_export(folder: Path, names: Any) -> Path:
    folder.mkdir()
    save_for_hf(tiny_model(num_classes=3), folder, model_config={"label_names": names}, safe_serialization=True)
    return folder / "model.safetensors"


@pytest.fixture(params=["checkpoint", "checkpoint of images without labels", "export", "export of another library"])
def named(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A weights file whose classes have the names NAMES."""
    kind = request.param
    if kind == "checkpoint":
        path = write_run(tmp_path / "run", list(NAMES), None)
        return path.rename(tmp_path / "moved.pth")
    if kind == "checkpoint of images without labels":
        return write_run(tmp_path / "run", None, NAMES)
    if kind == "export":
        return write_export(tmp_path / "export", list(NAMES))
    (tmp_path / "own").mkdir()
    Student("test_resnet", {"num_classes": 3}, 32, 1.0, "bilinear", NAMES).write(tmp_path / "own")
    save_file(tiny_model(num_classes=3).state_dict(), tmp_path / "own" / "model.safetensors")
    return tmp_path / "own" / "model.safetensors"


def test_a_file_names_its_classes_for_students_and_teachers(named: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", None, SORTED).parent
    assert load_student(StudentConfig(student=str(other)))[1].class_names == SORTED
    assert load_student(StudentConfig(student=str(other), checkpoint=str(named)))[1].class_names == NAMES
    assert load_student(StudentConfig(student="test_resnet", checkpoint=str(named)))[1].class_names == NAMES
    for config in (
        TeacherConfig(str(named), arch="test_resnet"),
        TeacherConfig("test_resnet", checkpoint=str(named)),
        TeacherConfig(str(other), checkpoint=str(named)),
    ):
        assert resolve_teacher(config, CPU, SORTED).class_map == (1, 2, 0)
        with pytest.raises(ClassMismatchError, match="has no class 'fox', which the data has"):
            resolve_teacher(config, CPU, ("cat", "dog", "fox"))
    assert create_teacher(tiny_model(num_classes=3), checkpoint=named).class_names == NAMES


def test_a_run_tells_that_a_file_names_its_classes_otherwise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "run", list(SORTED), SORTED).parent
    load_student(StudentConfig(student=str(run)))
    assert not caplog.text
    named = write_run(tmp_path / "other", list(NAMES), NAMES)
    load_student(StudentConfig(student=str(run), checkpoint=str(named)))
    assert f"the class names of '{named}' are taken, which differ from those of '{run}'" in caplog.text


def test_weights_that_nothing_names_have_no_names(tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", list(NAMES))
    save_file(tiny_model(num_classes=3).state_dict(), export.with_name("tuned.safetensors"))
    assert read_checkpoint(export.with_name("tuned.safetensors")).class_names is None
    assert read_checkpoint(write_run(tmp_path / "run", None, None)).class_names is None
    torch.save({"state_dict": tiny_model(num_classes=3).state_dict()}, tmp_path / "run" / "model.pth")
    (tmp_path / "run" / "config.json").write_text(json.dumps(["of another library"]))
    assert read_checkpoint(tmp_path / "run" / "model.pth").class_names is None


@pytest.mark.parametrize(
    ("description", "error", "problem"),
    [("{", CheckpointError, "config.json"), ('{"label_names": 3}', ClassMismatchError, "expected a list of names")],
)
def test_a_damaged_description_beside_the_weights_is_refused(
    description: str, error: type[Exception], problem: str, tmp_path: Path
) -> None:
    export = write_export(tmp_path / "export", list(NAMES))
    export.with_name("config.json").write_text(description)
    with pytest.raises(error, match=problem):
        read_checkpoint(export)


@pytest.mark.parametrize(
    ("stored", "wanted", "rows"),
    [
        (NAMES, NAMES, [0, 1, 2]),
        (NAMES, SORTED, [1, 2, 0]),
        (NAMES, ("cat", "dog", "fox"), None),
        (NAMES, ("cat", "dog", "fox", "owl"), None),
        (NAMES, None, None),
        (("0", "1", "2"), None, [0, 1, 2]),
        (None, SORTED, [0, 1, 2]),
        (None, ("cat", "dog"), None),
    ],
)
def test_a_student_starts_with_the_stored_classifier_in_its_own_order_of_classes(
    stored: tuple[str, ...] | None,
    wanted: tuple[str, ...] | None,
    rows: list[int] | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = write_run(tmp_path / "run", None if stored is None else list(stored), None)
    found: Any = tiny_model(num_classes=len(wanted or NAMES), seed=7)
    own = [parameter.detach().clone() for parameter in (found.fc.weight, found.fc.bias)]
    load_body(found, read_checkpoint(file), wanted)
    earlier: Any = tiny_model(num_classes=3)
    expected = own if rows is None else [earlier.fc.weight[rows], earlier.fc.bias[rows]]
    assert torch.equal(found.fc.weight, expected[0])
    assert torch.equal(found.fc.bias, expected[1])
    assert torch.equal(found.conv1[0].weight, earlier.conv1[0].weight)
    assert ("is left out" in caplog.text) == (rows is None)
    assert ("brought into the data's order" in caplog.text) == (rows == [1, 2, 0])


@pytest.mark.parametrize("start", ["pretrained", "checkpoint_path", "file"])
def test_every_start_of_a_student_has_the_stored_classifier_in_its_own_order_of_classes(
    start: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export, earlier = write_export(tmp_path / "export", list(NAMES)), tiny_model(num_classes=3)
    name = f"local-dir:{export.parent}" if start == "pretrained" else "test_resnet"
    options: dict[str, Any] = {start: True if start == "pretrained" else str(export)}
    for wanted, rows in ((NAMES, [0, 1, 2]), (SORTED, [1, 2, 0])):
        found: Any = create_student(name, wanted, num_classes=3, **options)
        assert torch.equal(found.fc.weight, earlier.fc.weight[rows])
        assert torch.equal(found.conv1[0].weight, earlier.conv1[0].weight)
    found = create_student(name, ("cat", "dog", "fox"), num_classes=3, **options)
    assert not torch.equal(found.fc.weight, earlier.fc.weight)
    assert "its classifier has other classes, and is left out" in caplog.text


def test_a_model_that_does_not_name_its_classifier_starts_only_from_its_own_classes(tmp_path: Path) -> None:
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    path = tmp_path / "last.pth.tar"
    torch.save({"state_dict": layers.state_dict(), "kdkit": {"config": {"class_names": list(NAMES)}}}, path)
    load_body(layers, read_checkpoint(path), NAMES)
    with pytest.raises(CheckpointError, match="and Sequential does not name its classifier: set its pretrained_cfg"):
        load_body(layers, read_checkpoint(path), SORTED)
