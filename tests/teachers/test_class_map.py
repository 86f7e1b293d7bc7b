"""Class maps by index, by name, and by synset between the ImageNet families that timm lists."""

from __future__ import annotations

import pytest
import torch
from support import tiny_model

from kdkit import create_teacher
from kdkit.errors import ClassMismatchError, ConfigError, UnknownNameError
from kdkit.teachers.class_map import map_names, pick_classes, resolve_class_map
from kdkit.teachers.imagenet import IMAGENETS, are_synsets, synsets
from kdkit.types import Batch

WIDTHS = {
    "imagenet-1k": 1000,
    "imagenet-12k": 11821,
    "imagenet-21k": 21843,
    "imagenet-21k-goog": 21843,
    "imagenet-21k-miil": 11221,
    "imagenet-22k": 21841,
    "imagenet-22k-ms": 21842,
}


class Head(torch.nn.Module):
    """As wide as a model of an ImageNet family; its logits are the numbers of its classes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.arange(self.num_classes).float().expand(len(images), -1)


def run_teacher(**options: object) -> torch.Tensor:
    teacher = create_teacher(Head(int(options.pop("width", 4))), **options)  # type: ignore[arg-type,call-overload]
    logits = teacher(Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2))).logits
    assert logits is not None
    return logits[0]


@pytest.mark.parametrize("family", IMAGENETS)
def test_every_synset_of_1k_is_found_in_a_family_or_named_as_missing(family: str) -> None:
    wanted, names = synsets("imagenet-1k"), synsets(family)
    assert len(names) == WIDTHS[family]
    assert are_synsets(names)
    missing = sorted(set(wanted) - set(names), key=wanted.index)
    if missing:
        with pytest.raises(ClassMismatchError, match=f"{len(missing)} of the 1000.*{missing[0]}"):
            map_names(wanted, names, "the teacher")
    found = map_names(wanted, names, "the teacher", "min_logit")
    assert [names[number] if number >= 0 else "none" for number in found] == [
        "none" if name in missing else name for name in wanted
    ]


def test_22k_lacks_one_synset_of_1k_and_its_microsoft_order_none() -> None:
    with pytest.raises(
        ClassMismatchError,
        match=r"no class for 1 of the 1000 classes of the map: n04399382; .*missing_classes=\"min_logit\"",
    ):
        run_teacher(width=21841, class_map="imagenet-1k")
    assert run_teacher(width=21842, class_map="imagenet-1k").tolist() == list(range(1000))


def test_a_missing_class_is_the_teachers_least_likely() -> None:
    outputs = run_teacher(width=21841, class_map="imagenet-1k", missing_classes="min_logit")
    at = synsets("imagenet-1k").index("n04399382")
    others = [synsets("imagenet-22k").index(name) for name in synsets("imagenet-1k") if name != "n04399382"]
    assert outputs.tolist() == [*others[:at], min(others), *others[at:]]


def test_missing_survives_for_input_and_counts_in_the_fingerprint() -> None:
    teacher = create_teacher(
        Head(4), class_map=["a", "x"], class_names=["d", "a", "b", "c"], missing_classes="min_logit"
    )
    assert teacher.class_map == teacher.for_input(teacher.normalization).class_map == (1, -1)
    other = create_teacher(Head(4), class_map=["a", "b"], class_names=["d", "a", "b", "c"])
    assert teacher.fingerprint()["class_map_sha256"] != other.fingerprint()["class_map_sha256"]


def test_names_are_looked_up_in_the_given_order() -> None:
    names = ["cat", "dog", "owl", "fox"]
    assert run_teacher(class_names=names, class_map=["fox", "cat"]).tolist() == [3, 0]
    with pytest.raises(ClassMismatchError, match="1 of the 2 classes of the map: cow"):
        run_teacher(class_names=names, class_map=["fox", "cow"])
    with pytest.raises(ClassMismatchError, match="2 of the 2 classes of the map: cow, ant"):
        run_teacher(class_names=names, class_map=["cow", "ant"], missing_classes="min_logit")
    with pytest.raises(ClassMismatchError, match="several classes crane"):
        run_teacher(class_names=["crane", "dog", "crane", "fox"], class_map=["crane", "dog"])
    with pytest.raises(ClassMismatchError, match="4 classes, class_names names 2"):
        run_teacher(class_names=names[:2], class_map=["cat", "dog"])


def test_synsets_of_a_few_classes_pick_them_from_a_1k_model() -> None:
    wanted = ["n02123045", "n01440764"]
    assert run_teacher(width=1000, class_map=wanted).tolist() == [synsets("imagenet-1k").index(name) for name in wanted]


def test_what_timm_does_not_list_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="imagenet-1k"):
        run_teacher(width=1000, class_map="imagenet-1kk")
    with pytest.raises(ConfigError, match="no ImageNet family has 10; pass class_names"):
        resolve_class_map("imagenet-1k", tiny_model(), "the teacher")


def test_the_least_logit_of_each_row_stands_for_a_missing_class() -> None:
    logits = torch.tensor([[5.0, -1.0, 3.0], [0.0, 2.0, -4.0]])
    assert pick_classes(logits, torch.tensor([2, -1, 0])).tolist() == [[3.0, 3.0, 5.0], [-4.0, -4.0, 0.0]]
