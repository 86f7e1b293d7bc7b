"""Teachers that know the names of their classes: matched with the data's by name, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import tiny_model
from timm.models import save_for_hf

from kdkit import TeacherEnsemble, create_teacher
from kdkit.config import SingleTeacherConfig, TeacherConfig
from kdkit.errors import ClassMismatchError
from kdkit.resolve import describe_teacher, resolve_teacher
from kdkit.types import Batch

CPU = torch.device("cpu")
NAMES = ["dog", "cat", "eel"]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timm's export of a model of three classes whose names its config.json holds."""
    folder = tmp_path_factory.mktemp("export")
    save_for_hf(
        tiny_model(num_classes=3), folder / "pets", model_config={"label_names": NAMES}, safe_serialization=True
    )
    return folder / "pets"


def logits(teacher: object) -> torch.Tensor:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = teacher(Batch(images, torch.zeros(4))).logits  # type: ignore[operator]
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_an_export_whose_classes_are_in_another_order_is_mapped_by_name(export: Path, prefix: str) -> None:
    config = TeacherConfig(f"{prefix}{export}")
    same = resolve_teacher(config, CPU, NAMES)
    assert (same.class_map, same.class_names) == (None, tuple(NAMES))
    mapped = resolve_teacher(config, CPU, ["cat", "dog", "eel"])
    assert (mapped.class_map, mapped.class_names) == ((1, 0, 2), ("cat", "dog", "eel"))
    assert torch.equal(logits(mapped), logits(same)[:, [1, 0, 2]])
    assert "its classes mapped to the data's" in describe_teacher(mapped)
    assert "mapped" not in describe_teacher(same)


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (["cat", "dog", "fox"], "has no class 'fox', which the data has"),
        (["cat", "dog"], "has the class 'eel', which the data does not have"),
        (["0", "1", "2"], "has no class '0', which the data has; its first is 'dog'"),
    ],
)
def test_other_classes_are_refused_by_the_first_difference(export: Path, names: list[str], difference: str) -> None:
    with pytest.raises(ClassMismatchError, match=difference):
        resolve_teacher(TeacherConfig(f"local-dir:{export}"), CPU, names)


def test_a_class_map_goes_before_the_names(export: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps([2, 0]))
    config = TeacherConfig(f"local-dir:{export}", class_map=str(tmp_path / "map.json"))
    assert resolve_teacher(config, CPU, ["a", "b"]).class_map == (2, 0)
    (tmp_path / "map.json").write_text(json.dumps(["eel", "cat"]))
    assert resolve_teacher(config, CPU, ["a", "b"]).class_names == ("eel", "cat")


def test_every_member_of_an_ensemble_is_matched(export: Path) -> None:
    config = TeacherConfig(f"local-dir:{export}", ensemble=(SingleTeacherConfig(str(export)),))
    teacher = resolve_teacher(config, CPU, ["eel", "dog", "cat"])
    assert isinstance(teacher, TeacherEnsemble)
    assert [member.class_map for member in teacher.members] == [(2, 0, 1), (2, 0, 1)]
    assert teacher.class_names == ("eel", "dog", "cat")


def test_names_survive_another_input_and_compose_with_a_map() -> None:
    teacher = create_teacher(tiny_model(num_classes=3), class_names=NAMES, class_map=["eel", "dog"])
    turned = teacher.with_taps(["pooled"]).for_classes(["dog", "eel"])
    assert (turned.class_map, turned.class_names, turned.taps) == ((0, 2), ("dog", "eel"), ("pooled",))
    assert create_teacher(tiny_model(num_classes=3)).for_classes(NAMES).class_map is None


def test_two_classes_of_one_name_cannot_be_matched() -> None:
    teacher = create_teacher(tiny_model(num_classes=3), class_names=["crane", "crane", "cat"])
    with pytest.raises(ClassMismatchError, match="calls several classes crane"):
        teacher.for_classes(["cat", "crane", "crane"])
