"""Teachers that know the names of their classes: matched with the data's by name, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import loader_for, tiny_model
from timm.models import save_for_hf

from kdkit import TeacherEnsemble, ViewRecipe, build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.config import SingleTeacherConfig, TeacherConfig
from kdkit.data import ArraySource, ReplayedDataset
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


def test_a_build_in_python_keeps_logits_in_the_datas_order_too(export: Path, tmp_path: Path) -> None:
    teacher = create_teacher(f"local-dir:{export}")
    images = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    source = ArraySource(images, [0, 1, 2] * 2, class_names=["cat", "dog", "eel"])
    dataset = ReplayedDataset(source, ViewRecipe(size=32, hflip=0.0))
    build_cache(teacher, dataset, tmp_path / "t.h5", BuildConfig(codec="float32", num_workers=0), device="cpu")
    cached = open_cache(tmp_path / "t.h5", dataset)
    loader = loader_for(dataset, teacher.model)
    batch = next(iter(loader))
    expected = teacher.for_input(loader.normalization)(batch).logits[:, [1, 0, 2]].log_softmax(1)
    torch.testing.assert_close(cached(batch).logits, expected, rtol=1e-5, atol=1e-5)
    other = ArraySource(images, [0, 1, 2] * 2, class_names=["cat", "dog", "fox"])
    with pytest.raises(ClassMismatchError, match="'fox'"):
        build_cache(teacher, ReplayedDataset(other, ViewRecipe(size=32)), tmp_path / "o.h5", device="cpu")


def test_members_of_an_ensemble_are_brought_into_one_order_of_classes() -> None:
    model = tiny_model(num_classes=3)
    one = create_teacher(model, class_names=["cat", "dog", "eel"])
    other = create_teacher(tiny_model(num_classes=3, seed=5), class_names=["eel", "cat", "dog"])
    ensemble = TeacherEnsemble([one, other])
    expected = (logits(one).softmax(1) + logits(other).softmax(1)[:, [1, 2, 0]]).log() - np.log(2)
    torch.testing.assert_close(logits(ensemble), expected, rtol=1e-5, atol=1e-5)
    assert ensemble.class_names == ("cat", "dog", "eel")
    turned = ensemble.for_classes(["dog", "cat", "eel"])
    torch.testing.assert_close(logits(turned), expected[:, [1, 0, 2]], rtol=1e-5, atol=1e-5)
    stranger = create_teacher(model, class_names=["cat", "dog", "fox"])
    with pytest.raises(ClassMismatchError, match="no class 'eel'"):
        TeacherEnsemble([one, stranger])
