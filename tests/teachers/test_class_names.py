"""Teachers that know the names of their classes: matched with the data's by name, or refused."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from support import loader_for, tiny_model
from timm.data import ImageNetInfo
from timm.models import save_for_hf

from kdkit import (
    FeatureDistillationTask,
    LogitDistillationTask,
    Teacher,
    TeacherEnsemble,
    ViewRecipe,
    build_cache,
    create_loader,
    create_teacher,
    open_cache,
)
from kdkit.building.config import BuildConfig
from kdkit.building.teacher import for_dataset
from kdkit.config import SingleTeacherConfig, TeacherConfig
from kdkit.data import ArraySource, MultiLabelSource, ReplayedDataset
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


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["dog", "cat"], "has 3 classes, label_names names 2"),
        (["dog", "cat", "eel", "fox"], "has 3 classes, label_names names 4"),
        ("dog,cat,eel", "expected a list of names"),
        ([0, 1, 2], "expected a list of names"),
        ({"0": "dog", "one": "cat", "2": "eel"}, "have the key 'one': expected the index of a class"),
    ],
)
def test_label_names_that_are_not_one_name_for_each_class_are_refused_for_a_teacher_by_name(
    tmp_path: Path, given: object, problem: str
) -> None:
    model = tiny_model(num_classes=3)
    save_for_hf(model, tmp_path / "odd", safe_serialization=True)
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "label_names": given}))
    for name in (f"local-dir:{tmp_path / 'odd'}", str(tmp_path / "odd")):
        with pytest.raises(ClassMismatchError, match=problem):
            resolve_teacher(TeacherConfig(name), CPU, NAMES)


def test_label_names_may_be_a_mapping_from_index_to_name(tmp_path: Path) -> None:
    model = tiny_model(num_classes=12)
    names = [f"name {number}" for number in range(12)]
    save_for_hf(model, tmp_path / "map", model_config={"label_names": dict(enumerate(names))}, safe_serialization=True)
    assert create_teacher(f"local-dir:{tmp_path / 'map'}").class_names == tuple(names)


def test_a_module_whose_head_was_replaced_has_no_names(export: Path) -> None:
    assert create_teacher(timm.create_model(f"local-dir:{export}", pretrained=True)).class_names == tuple(NAMES)
    other = timm.create_model(f"local-dir:{export}", pretrained=True, num_classes=2)
    assert create_teacher(other).class_names is None


def test_a_checkpoint_with_another_head_has_no_names(export: Path, tmp_path: Path) -> None:
    save_file(tiny_model(num_classes=5).state_dict(), tmp_path / "tuned.safetensors")
    assert create_teacher(f"local-dir:{export}", checkpoint=tmp_path / "tuned.safetensors").class_names is None
    with pytest.raises(ClassMismatchError, match="class_names names 0"):
        create_teacher(tiny_model(num_classes=3), class_names=[])


@pytest.mark.parametrize("class_map", [None, [0, 1], ["a", "b"]])
def test_class_names_of_the_wrong_length_are_refused(class_map: list[int] | None) -> None:
    with pytest.raises(ClassMismatchError, match="has 3 classes, class_names names 2: give one name for each class"):
        create_teacher(tiny_model(num_classes=3), class_names=["a", "b"], class_map=class_map)


@pytest.fixture(scope="module")
def imagenet() -> Teacher:
    return create_teacher(tiny_model(num_classes=1000))


def spelled(name: str) -> str:
    return name.replace(" ", "_").upper()


@pytest.mark.parametrize("manner", ["synsets", "all names"])
def test_an_imagenet_teacher_is_matched_with_folders_named_by_synset_or_by_name(imagenet: Teacher, manner: str) -> None:
    """WordNet calls two classes "crane"; folders cannot."""
    info = ImageNetInfo("imagenet-1k")
    own = info.label_names() if manner == "synsets" else [spelled(name) for name in info.label_descriptions()]
    if manner == "all names":
        own = [f"{name}-{number}" if own.count(name) > 1 else name for number, name in enumerate(own)]
        with pytest.raises(ClassMismatchError, match="no class 'CRANE-134', which the data has"):
            imagenet.for_classes(own)
        return
    assert imagenet.for_classes(own).class_map is None
    turned = imagenet.for_classes(own[::-1])
    assert turned.class_map == tuple(range(999, -1, -1))
    assert turned.class_names == tuple(own[::-1])
    assert turned.for_classes(own[::-1]) is turned
    assert torch.equal(logits(turned), logits(imagenet).flip(1))


def test_a_part_of_imagenets_classes_is_picked_by_a_class_map_of_names_only(imagenet: Teacher) -> None:
    some = ["n03773504", "n02124075"]
    with pytest.raises(ClassMismatchError, match=r"the data has 2 of its 1,000 classes; .*pick these with a class_map"):
        imagenet.for_classes(some)
    expected = logits(imagenet)[:, [657, 285]]
    for class_map in (some, ["missile", "Egyptian cat"], ["Missile", "egyptian_cat"]):
        picked = create_teacher(imagenet.model, class_map=class_map)
        assert torch.equal(logits(picked), expected)
        assert picked.for_classes(class_map) is picked
    with pytest.raises(ClassMismatchError, match="has no class 'n00000001'"):
        imagenet.for_classes(["n00000001", *ImageNetInfo("imagenet-1k").label_names()[1:]])


def test_a_thousand_classes_of_other_names_are_not_taken_for_imagenets(imagenet: Teacher) -> None:
    assert imagenet.for_classes([f"{number:04d}" for number in range(1000)]) is imagenet
    assert imagenet.for_classes(["crane", *[f"bird {number}" for number in range(999)]]) is imagenet
    assert create_teacher(tiny_model(num_classes=10)).for_classes(["tench", "goldfish"]).class_map is None


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_unicode_forms_of_one_name_are_one_class(forms: tuple[str, str]) -> None:
    """A Mac writes an umlaut as two characters."""
    own, given = ([unicodedata.normalize(form, name) for name in ("Bär", "Hund", "Öl")] for form in forms)
    model = tiny_model(num_classes=3)
    teacher = create_teacher(model, class_names=own)
    assert teacher.for_classes(given) is teacher
    assert teacher.for_classes(given[::-1]).class_map == (2, 1, 0)
    assert create_teacher(model, class_names=own, class_map=given[::-1]).class_map == (2, 1, 0)


@pytest.mark.parametrize("class_map", [["dog", "cat"], [0, 1]])
def test_a_listed_class_map_is_literal_in_python_too_and_a_line_says_where_it_crosses_names(
    class_map: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = create_teacher(tiny_model(num_classes=3), class_names=NAMES, class_map=class_map)
    for names in (["cat", "dog"], ["dog", "cat"], ["kitten", "wolf"]):
        assert teacher.for_classes(names) is teacher
    images = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    dataset = ReplayedDataset(ArraySource(images, [0, 1] * 2, class_names=["cat", "dog"]), ViewRecipe(size=32, hflip=0))
    build_cache(teacher, dataset, tmp_path / "t.h5", BuildConfig(codec="float32", num_workers=0))
    (line,) = [record.getMessage() for record in caplog.records if "class_map" in record.getMessage()]
    assert re.search("class 0 of the data, 'cat', the class 'dog' of the teacher .*: it is taken as it is", line)
    cached = open_cache(tmp_path / "t.h5", dataset).teacher
    assert cached["class_map_sha256"] == teacher.fingerprint()["class_map_sha256"]


def test_a_teacher_of_features_alone_may_have_other_classes(export: Path, tmp_path: Path) -> None:
    with pytest.raises(ClassMismatchError, match="no class 'fox'"):
        resolve_teacher(TeacherConfig(str(export)), CPU, ["fox", "owl"])
    teacher = resolve_teacher(TeacherConfig(str(export)), CPU, ["fox", "owl"], needs_logits=False)
    images = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    dataset = ReplayedDataset(ArraySource(images, [0, 1] * 2, class_names=["fox", "owl"]), ViewRecipe(size=32))
    config = BuildConfig(streams=("pooled",), num_workers=0)
    build_cache(teacher, dataset, tmp_path / "f.h5", config, device="cpu")
    assert open_cache(tmp_path / "f.h5", dataset).class_names == ["fox", "owl"]


def test_a_class_map_goes_before_the_names(export: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps([2, 0]))
    config = TeacherConfig(f"local-dir:{export}", class_map=str(tmp_path / "map.json"))
    assert resolve_teacher(config, CPU, ["a", "b"]).class_map == (2, 0)
    (tmp_path / "map.json").write_text(json.dumps(["eel", "cat"]))
    assert resolve_teacher(config, CPU, ["a", "b"]).class_names == ("eel", "cat")


@pytest.mark.parametrize(("given", "index"), [([0, 2, 1], (0, 2, 1)), (["eel", "dog", "cat"], (2, 0, 1))])
def test_a_class_map_is_literal_where_the_data_has_the_teachers_names(
    given: list[int] | list[str],
    index: tuple[int, ...],
    export: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "map.json").write_text(json.dumps(given))
    config = TeacherConfig(f"local-dir:{export}", class_map=str(tmp_path / "map.json"))
    data = ["cat", "dog", "eel"]
    teacher = resolve_teacher(config, CPU, data)
    assert teacher.class_map == index
    assert "gives class 0 of the data, 'cat', the class" in caplog.text
    assert teacher.with_taps(["pooled"]).for_classes(data).class_map == index
    images = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    dataset = ReplayedDataset(ArraySource(images, [0, 1, 2], class_names=data), ViewRecipe(size=32))
    assert for_dataset(resolve_teacher(config, CPU), dataset, ["logits"]).class_map == index
    both = resolve_teacher(dataclasses.replace(config, ensemble=(SingleTeacherConfig(str(export)),)), CPU, data)
    assert isinstance(both, TeacherEnsemble)
    assert [member.class_map for member in both.for_classes(data).members] == [index, (1, 0, 2)]


def test_every_member_of_an_ensemble_is_matched(export: Path) -> None:
    config = TeacherConfig(f"local-dir:{export}", ensemble=(SingleTeacherConfig(str(export)),))
    teacher = resolve_teacher(config, CPU, ["eel", "dog", "cat"])
    assert isinstance(teacher, TeacherEnsemble)
    assert [member.class_map for member in teacher.members] == [(2, 0, 1), (2, 0, 1)]
    assert teacher.class_names == ("eel", "dog", "cat")


def test_names_survive_another_input_and_are_matched_again() -> None:
    teacher = create_teacher(tiny_model(num_classes=3), class_names=NAMES)
    turned = teacher.with_taps(["pooled"]).for_classes(["eel", "cat", "dog"]).for_classes(["dog", "cat", "eel"])
    assert turned.class_names == ("dog", "cat", "eel")
    assert turned.class_map == tuple(map(list(NAMES).index, turned.class_names))
    assert turned.taps == ("pooled",)
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


def test_a_loop_of_ones_own_is_refused_a_teacher_with_the_classes_in_another_order() -> None:
    images, student = np.zeros((4, 32, 32, 3), np.uint8), tiny_model(num_classes=3)
    dataset = ReplayedDataset(ArraySource(images, [0, 1, 2, 0], class_names=sorted(NAMES)), ViewRecipe(size=32))
    teacher = create_teacher(tiny_model(num_classes=3), class_names=NAMES)
    with pytest.raises(ClassMismatchError, match=r"in another order: pass teacher.for_classes"):
        create_loader(dataset, LogitDistillationTask(student, teacher), batch_size=2, num_workers=0)
    for task in (
        LogitDistillationTask(student, teacher.for_classes(sorted(NAMES))),
        FeatureDistillationTask(student, teacher.with_taps(["pooled"]), distill_loss="hint_mse"),
    ):
        assert len(create_loader(dataset, task, batch_size=2, num_workers=0)) == 2


def test_several_labels_without_names_are_refused_for_a_teacher_whose_classes_have_names() -> None:
    images = ArraySource(np.zeros((4, 32, 32, 3), np.uint8), [0] * 4)
    teacher = create_teacher(tiny_model(num_classes=3), class_names=NAMES)
    source = MultiLabelSource(images, [[0, 1, 1]] * 4)
    with pytest.raises(ClassMismatchError, match=r"class indices, and the classes of the teacher .* have names"):
        for_dataset(teacher, ReplayedDataset(source, ViewRecipe(size=32)), ["logits"])
    named = MultiLabelSource(images, [[0, 1, 1]] * 4, class_names=["cat", "dog", "eel"])
    assert for_dataset(teacher, ReplayedDataset(named, ViewRecipe(size=32)), ["logits"]).class_map == (1, 0, 2)


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
