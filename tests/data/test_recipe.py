"""Recipes: presets, erasing, and custom transforms."""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import CLASSES, RECIPE, digits, digits_dataset
from timm.data.random_erasing import RandomErasing
from torch import nn
from torchvision.transforms import v2

from kdkit.data import ArraySource, ReplayedDataset
from kdkit.data.views.erasing import Erasing
from kdkit.data.views.identity import transform_identity
from kdkit.data.views.seed import preserve_rng_state
from kdkit.data.views.transform import _posterize
from kdkit.errors import ConfigError, ShapeError, UnknownNameError
from kdkit.recipe import PRESETS, ViewRecipe
from kdkit.types import IMAGENET_MEAN, IMAGENET_STD

OWN = ViewRecipe(size=24, num_views=2)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_draws_views(name: str) -> None:
    recipe = ViewRecipe.preset(name, size=32)
    dataset = digits_dataset(6, recipe)
    assert dataset[2, 0].image.shape == (3, 32, 32)
    assert ViewRecipe.from_dict(recipe.to_dict()) == recipe


def test_a_presets_fields_can_be_replaced_and_an_unknown_one_suggests() -> None:
    recipe = ViewRecipe.preset("deit", num_views=10, erasing=0.0)
    assert (recipe.num_views, recipe.erasing, recipe.mixup_alpha) == (10, 0.0, 0.8)
    with pytest.raises(UnknownNameError, match="did you mean 'deit'"):
        ViewRecipe.preset("diet")


def test_the_augmentations_of_three_augment_are_drawn() -> None:
    dataset = digits_dataset(30, ViewRecipe(size=32, auto_augment="3a", color_jitter=0.3, num_views=2))
    views = {dataset[row, view].image.numpy().tobytes() for row in range(30) for view in range(2)}
    assert len(views) > 55


@pytest.mark.parametrize("string", ["rand-m10-n8-inc1-t3a", "rand-m10-n12-inc1", "rand-m0-n12", "v0", "augmix-m10"])
def test_operations_at_their_strongest_are_drawn_whatever_pillow_thinks_of_them(string: str) -> None:
    dataset = digits_dataset(20, ViewRecipe(size=16, auto_augment=string, num_views=4))
    for row in range(20):
        for view in range(4):
            assert dataset[row, view].image.shape == (3, 16, 16)


@pytest.mark.parametrize("bits", range(9))
def test_posterize_keeps_the_upper_bits(bits: int) -> None:
    image = digits(1)[0][0]
    kept = np.asarray(image) & (0xFF << (8 - bits) & 0xFF)
    assert np.array_equal(np.asarray(_posterize(image, bits)), kept)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_erases_as_often_and_as_much_as_timm(mode: str) -> None:
    ours, timms = Erasing(0.6, mode, 3), RandomErasing(0.6, mode=mode, max_count=3, device="cpu")
    erased: dict[str, list[float]] = {"ours": [], "timm": []}
    with preserve_rng_state():
        random.seed(1)
        torch.manual_seed(1)
        for _ in range(3000):
            image = ours(torch.full((3, 32, 32), 201, dtype=torch.uint8))
            erased["ours"].append(float((image != 201).any(0).float().mean()))
            normalised = timms(torch.full((3, 32, 32), 100.0))
            erased["timm"].append(float((normalised != 100).any(0).float().mean()))
    for measure in (np.mean, np.std, lambda shares: np.mean(np.asarray(shares) > 0)):
        assert measure(erased["ours"]) == pytest.approx(measure(erased["timm"]), rel=0.06)


def test_erased_pixels_are_what_timm_makes_of_them_but_for_clipping() -> None:
    mean, std = (torch.tensor(values).mul(255).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with preserve_rng_state():
        torch.manual_seed(0)
        expected = torch.randn(3, 9, 7).mul(std).add(mean)
        torch.manual_seed(0)
        noise = Erasing(1.0, "pixel", 1)._fill(9, 7)
        flat = Erasing(1.0, "rand", 1)._fill(9, 7)
        grey = Erasing(1.0, "const", 1)._fill(9, 7)
    assert torch.equal(noise, expected.round().clamp(0, 255).to(torch.uint8))
    assert flat.shape == grey.shape == (3, 1, 1)
    assert grey.flatten().tolist() == [round(255 * value) for value in IMAGENET_MEAN]


def test_erasing_leaves_the_rest_of_the_view_as_it_was() -> None:
    recipe = dataclasses.replace(RECIPE, erasing=1.0, erasing_mode="pixel", erasing_count=2)
    plain, erased = digits_dataset(20, RECIPE), digits_dataset(20, recipe)
    changed = [float((plain[row, 0].image != erased[row, 0].image).any(0).float().mean()) for row in range(20)]
    assert min(changed) > 0
    assert max(changed) < 0.45


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"erasing": 1.5}, "erasing"),
        ({"erasing_mode": "noise"}, "erasing_mode"),
        ({"erasing_count": 0}, "erasing_count"),
        ({"mixup_alpha": -1.0}, "mixup_alpha"),
        ({"cutmix_alpha": float("nan")}, "cutmix_alpha"),
        ({"mix_prob": 2.0}, "mix_prob"),
        ({"switch_prob": -0.1}, "switch_prob"),
        ({"teacher_size": 0}, "teacher_size"),
        ({"augment": False, "erasing": 0.5}, "erasing"),
        ({"augment": False, "mixup_alpha": 0.5}, "mixup_alpha"),
        ({"transform": "mine", "hflip": 0.3}, "hflip"),
        ({"transform": "mine", "teacher_size": 300}, "teacher_size"),
    ],
)
def test_a_recipe_refuses_what_cannot_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViewRecipe(**fields)


# Custom transforms.


def torchvision_transform(flip: float = 0.5) -> v2.Compose:
    return v2.Compose([v2.RandomResizedCrop(24), v2.RandomHorizontalFlip(flip), v2.ColorJitter(0.4), v2.PILToTensor()])


class Rotates(nn.Module):
    """A module with a parameter that its repr does not show."""

    def __init__(self, degrees: float) -> None:
        super().__init__()
        self.degrees = degrees

    def forward(self, image: Image.Image) -> Image.Image:
        return image.resize((24, 24)).rotate(random.uniform(-self.degrees, self.degrees))


class Keywords:
    """Called as albumentations is, and with a generator of its own as there."""

    def __init__(self, strength: float = 20.0) -> None:
        self.strength = strength
        self.generator = np.random.default_rng()

    def set_random_seed(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def __call__(self, *arguments: object, force_apply: bool = False, **named: Any) -> dict[str, Any]:
        image = np.asarray(Image.fromarray(named["image"]).resize((24, 24))).astype(float)
        noisy = image + self.strength * self.generator.standard_normal(image.shape)
        return {"image": noisy.clip(0, 255).astype(np.uint8)}


class Unseeded(Keywords):
    """Draws from a generator that cannot be seeded."""

    set_random_seed = None  # type: ignore[assignment]


def jitter(image: Image.Image, *, amount: float) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image.resize((24, 24)))).movedim(-1, 0)
    return (pixels * (1 - amount * torch.rand(()))).to(torch.uint8)


@pytest.mark.parametrize(
    "transform", [torchvision_transform(), Rotates(30), Keywords(), functools.partial(jitter, amount=0.5)]
)
def test_a_custom_transform_is_replayed(transform: Any) -> None:
    dataset = ReplayedDataset(digits(12), OWN, transform=transform, transform_id="mine")
    views = {(row, view): dataset[row, view].image for row in range(12) for view in range(2)}
    for (row, view), image in reversed(views.items()):
        assert torch.equal(dataset[row, view].image, image)
        assert image.shape == (3, 24, 24)
    assert sum(not torch.equal(views[row, 0], views[row, 1]) for row in range(12)) > 8


def test_a_transform_that_cannot_be_seeded_is_refused() -> None:
    with pytest.raises(ConfigError, match="set_random_seed"):
        ReplayedDataset(digits(4), OWN, transform=Unseeded(), transform_id="mine")


@pytest.mark.parametrize("seed", range(10))
def test_a_transform_that_draws_from_elsewhere_once_in_twenty_views_is_refused(seed: int) -> None:
    generator = np.random.default_rng(seed)  # as one without a seed, but the test ends alike each time

    def rare(image: Image.Image) -> Image.Image:
        image = image.resize((24, 24))
        return image.point(lambda value: 255 - value) if generator.random() < 0.05 else image

    with pytest.raises(ConfigError, match="two different views from one seed"):
        ReplayedDataset(digits(4), OWN, transform=rare, transform_id="mine")


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.Compose([v2.Resize((24, 24)), v2.ToImage(), v2.ToDtype(torch.float32)]), "torch.float32"),
        (v2.Compose([v2.Resize((20, 24)), v2.PILToTensor()]), r"\[3, 20, 24\]"),
        (lambda image: "text", "returned a str"),
    ],
)
def test_a_transform_that_returns_no_view_is_refused(transform: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        ReplayedDataset(digits(4), OWN, transform=transform, transform_id="mine")


@dataclasses.dataclass
class Turns:
    """A transform whose repr shows its parameter."""

    degrees: float

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.resize((24, 24)).rotate(random.uniform(-self.degrees, self.degrees))


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (torchvision_transform(), torchvision_transform(), torchvision_transform(0.4)),
        (Turns(30), Turns(30), Turns(31)),
        (Turns(30).__call__, Turns(30).__call__, Turns(29).__call__),
        (Rotates(30), Rotates(30), torchvision_transform()),
    ],
)
def test_transforms_have_one_identity_where_their_names_and_reprs_are_equal(one: Any, same: Any, other: Any) -> None:
    assert transform_identity(one) == transform_identity(same)
    assert transform_identity(one) != transform_identity(other)
    assert "\n" not in transform_identity(one)


def resized(image: Image.Image) -> Image.Image:
    return image.resize((24, 24))


@pytest.mark.parametrize("transform", [resized, lambda image: resized(image), functools.partial(resized), Keywords()])
def test_a_transform_whose_repr_is_an_address_needs_a_name(transform: Any) -> None:
    with pytest.raises(ConfigError, match=r"an address that differs .* name it by transform_id=") as caught:
        ReplayedDataset(digits(4), OWN, transform=transform)
    assert "\n" not in str(caught.value)
    named = ReplayedDataset(digits(4), OWN, transform=transform, transform_id="mine-1")
    assert named.recipe.transform == "mine-1"


def test_a_recipe_and_its_transform_must_belong_together() -> None:
    recipe = ReplayedDataset(digits(4), OWN, transform=Turns(30)).recipe
    assert recipe.transform == transform_identity(Turns(30))
    again = ReplayedDataset(digits(4), ViewRecipe.from_dict(recipe.to_dict()), transform=Turns(30))
    assert again.recipe == recipe
    with pytest.raises(ConfigError, match=r"Turns\(degrees=30\).*but this one is.*Turns\(degrees=31\)"):
        ReplayedDataset(digits(4), recipe, transform=Turns(31))
    with pytest.raises(ConfigError, match=r"transform=\.\.\."):
        ReplayedDataset(digits(4), recipe)
    with pytest.raises(ConfigError, match="replaces hflip"):
        ReplayedDataset(digits(4), dataclasses.replace(OWN, hflip=0.1), transform=Turns(30))


def test_custom_transforms_are_mixed_too() -> None:
    plain = digits(6)
    source = ArraySource(plain.images, plain.targets, class_names=CLASSES)
    recipe = dataclasses.replace(OWN, mixup_alpha=1.0)
    mixed, alone = (ReplayedDataset(source, r, transform=Rotates(30)) for r in (recipe, OWN))
    partners = mixed.partners(0)
    assert partners is not None
    sample = mixed[1, 0]
    expected = alone[1, 0].image * sample.share + alone[int(partners[1]), 0].image * (1 - sample.share)
    assert int((sample.image - expected).abs().max()) <= 1


def test_the_command_line_takes_a_preset_and_later_flags_change_it() -> None:
    from kdkit.building.config import CacheEstimateConfig
    from kdkit.cli._parse import parse_config

    rest = ["--data", "train", "--teacher.model", "resnet18"]
    for flags in (["--recipe", "deit"], ["--recipe=deit"]):
        config = parse_config(CacheEstimateConfig, "cache estimate", [*rest, *flags, "--recipe.num_views", "4"])
        assert config.recipe == ViewRecipe.preset("deit", num_views=4)
