"""Fault 40: a recipe, a student's description or a configuration with absurd values is refused at once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import CLASSES, tiny_model

from kdkit.config import StudentConfig, TeacherConfig
from kdkit.errors import CheckpointError, ConfigError, KdkitError
from kdkit.recipe import ViewRecipe
from kdkit.student import Student, load_student
from kdkit.training.config import TrainConfig

MANY_DIGITS = 10**5_000

RECIPES: list[dict[str, Any]] = [
    {"size": 60_000},
    {"size": MANY_DIGITS},
    {"size": 1.5},
    {"size": True},
    {"teacher_size": 10**6},
    {"erasing_count": 10**9},
    {"num_views": 10**12},
    {"seed": 10**30},
    {"auto_augment": "rand-m5-n100000000"},
    {"auto_augment": "rand-m5-n1e9"},
    {"auto_augment": "rand-m99999999999"},
    {"auto_augment": "augmix-m5-w4-d1000000000"},
    {"auto_augment": "rand-m5" + "-n2" * 1_000},
    {"color_jitter": 1e308},
    {"mixup_alpha": float("inf")},
    {"ratio": [0.5, float("inf")]},
    {"ratio": [float("nan"), 1.0]},
    {"scale": [0.1, 0.5, 1.0]},
    {"hflip": float("nan")},
    {"crop_pct": 1e-9},
    {"transform": ["a"]},
]


@pytest.mark.parametrize("fields", RECIPES, ids=lambda fields: str(next(iter(fields))))
@pytest.mark.parametrize("make", [lambda fields: ViewRecipe(**fields), ViewRecipe.from_dict], ids=["made", "read"])
def test_fault_40_an_absurd_recipe_is_refused_by_the_name_of_its_field(make: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))) as raised:
        make(fields)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainConfig(epochs=10**15),
        lambda: TrainConfig(batch_size=10**12),
        lambda: TrainConfig(num_workers=10**6),
        lambda: TrainConfig(accumulate=MANY_DIGITS),
        lambda: TrainConfig(log_every=0),
        lambda: TrainConfig(checkpoint_every=-1),
        lambda: TrainConfig(epochs=1.5),  # type: ignore[arg-type]
        lambda: TrainConfig(opt=["adamw"]),  # type: ignore[arg-type]
        lambda: TeacherConfig("resnet18", input_size=10**6),
    ],
)
def test_fault_40_an_absurd_configuration_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"must be from .* to |has the wrong type"):
        make()


DESCRIPTION = {
    "model": "test_resnet", "model_args": {"num_classes": 10}, "input_size": 32, "crop_pct": 1.0,
    "interpolation": "bilinear", "class_names": CLASSES,
}  # fmt: skip
STUDENTS: list[dict[str, Any]] = [
    {"input_size": 10**6},
    {"input_size": 10**30},
    {"input_size": "32"},
    {"crop_pct": 0},
    {"interpolation": 3},
    {"class_names": [1, 2]},
    {"class_names": 3},
    {"model": 3},
    {"model": "test_resnett"},
    {"model": "../../etc/passwd"},
    {"model": "test_resnet.nope"},
    {"model_args": 3},
    {"model_args": {"num_classes": 10**9}},
    {"model_args": {"num_classes": "ten"}},
    {"model_args": {"num_classes": -1}},
    {"model_args": {"nonsense": 1}},
    {"model_args": {"in_chans": 10**9}},
    {"model_args": {"channels": [10**9] * 4}},
    {"model_args": {"layers": [10**8, 1, 1, 1]}},
    {"model_args": {"layers": [[10**8]]}},
    {"model_args": {"checkpoint_path": "/etc/passwd"}},
    {"model_args": {"pretrained": True}},
    {"num_parameters": "many"},
    {"surprise": 1},
]


@pytest.mark.parametrize("changes", STUDENTS, ids=str)
def test_fault_40_and_41_an_odd_description_of_a_student_is_one_line_that_names_the_file(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    torch.save({"state_dict": tiny_model().state_dict()}, tmp_path / "last.pth.tar")
    (tmp_path / "student.json").write_text(json.dumps({**DESCRIPTION, **changes}))
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=r"student\.json|last\.pth\.tar' does not fit") as raised:
        load_student(StudentConfig(student=str(tmp_path)))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "[" * 100_000, '{"input_size": ' + "9" * 5_000 + "}", "\x00", '{"class_names": NaN}']
)
def test_fault_41_a_description_that_is_no_document_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "student.json").write_text(text)
    with pytest.raises(KdkitError, match=r"student\.json' (does not describe a student|is not JSON that kdkit can)"):
        Student.read(tmp_path)


def test_an_unchanged_description_is_read(tmp_path: Path) -> None:
    torch.save({"state_dict": tiny_model().state_dict()}, tmp_path / "last.pth.tar")
    (tmp_path / "student.json").write_text(json.dumps(DESCRIPTION))
    assert load_student(StudentConfig(student=str(tmp_path)))[1].class_names == tuple(CLASSES)
