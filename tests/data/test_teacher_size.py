"""One draw rendered at two sizes: the teacher's larger view shows what the student's shows.

Compared: the teacher's view, downsampled, with the student's, on 100 crops of photographs. They differ by resampling
alone: up to 2 of 255 levels on average, where two draws of one image differ by twenty times that. Not promised:
equality; near to a border or to a threshold of a colour operation a pixel may differ by much.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data
from sklearn.datasets import load_sample_images
from support import CLASSES, digits_dataset, tiny_model
from torch import Tensor

from kdkit import LogitDistillationTask, build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.data import ArraySource, EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.data.views.seed import preserve_rng_state, seed_all
from kdkit.data.views.transform import create_view_transform
from kdkit.errors import CacheMismatchError, ConfigError
from kdkit.recipe import ViewRecipe
from kdkit.training.config import TrainConfig
from kdkit.training.train import train
from kdkit.types import Normalization

PRESETS = {name: ViewRecipe.preset(name, teacher_size=384) for name in ("eval", "rrc", "timm-a1", "funmatch")}
PRESETS["deit"] = ViewRecipe.preset("deit", teacher_size=384, erasing_mode="rand")


@pytest.fixture(scope="module")
def photographs() -> ArraySource:
    """100 crops, 256 by 256 pixels, of six photographs."""
    whole = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), *load_sample_images().images]
    place = np.random.default_rng(0)
    crops = []
    for index in range(100):
        photograph = whole[index % len(whole)]
        top, left = (int(place.integers(0, side - 256)) for side in photograph.shape[:2])
        crops.append(photograph[top : top + 256, left : left + 256])
    return ArraySource(np.stack(crops), np.arange(100) % 10, class_names=CLASSES)


def downsampled(view: Tensor) -> Tensor:
    return F.interpolate(view[None].float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_the_teachers_view_downsampled_is_the_students(photographs: ArraySource, name: str) -> None:
    recipe = PRESETS[name]
    dataset = ReplayedDataset(photographs, recipe).with_teacher_view()
    student = ReplayedDataset(photographs, dataclasses.replace(recipe, teacher_size=None))
    other = ReplayedDataset(photographs, dataclasses.replace(recipe, teacher_size=None, seed=1))
    differences, other_draws = [], []
    for row in range(100):
        sample = dataset[row, 0]
        assert sample.teacher_image is not None
        assert sample.teacher_image.shape == (3, 384, 384)
        assert torch.equal(sample.image, student[row, 0].image)
        differences.append(float((downsampled(sample.teacher_image) - sample.image.float()).abs().mean()))
        other_draws.append(float((other[row, 0].image.float() - sample.image.float()).abs().mean()))
    assert np.mean(differences) < 2
    assert max(differences) < 8
    assert name == "eval" or np.mean(other_draws) > 20 * np.mean(differences)


@pytest.mark.parametrize("name", [*PRESETS, "original-mstd0.5", "augmix-m5-w3"])
def test_what_is_drawn_does_not_depend_on_the_size(photographs: ArraySource, name: str) -> None:
    recipe = PRESETS[name] if name in PRESETS else ViewRecipe(auto_augment=name, erasing=0.5, erasing_count=3)
    image = photographs[3][0]
    small, large = (create_view_transform(recipe, size) for size in (48, 80))
    with preserve_rng_state():
        for seed in range(30):
            states = []
            for transform in (small, large):
                seed_all(seed)
                transform(image)
                states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))
            assert states[0] == states[1]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"auto_augment": "3a"}, "GaussianBlurRand"),
        ({"auto_augment": "rand-m9-t3a"}, "GaussianBlur"),
        ({"erasing": 0.5, "erasing_mode": "pixel"}, "erasing_mode 'pixel'"),
    ],
)
def test_what_is_measured_in_pixels_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    digits_dataset(4, ViewRecipe(size=32, **fields))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=named):
        digits_dataset(4, ViewRecipe(size=32, teacher_size=48, **fields))  # type: ignore[arg-type]


RECIPE = ViewRecipe(size=32, teacher_size=48, scale=(0.3, 1.0), cutmix_alpha=1.0, mixup_alpha=1.0, num_views=2)


def test_a_cache_holds_the_teachers_outputs_on_its_own_larger_views(tmp_path: Path) -> None:
    dataset, teacher = digits_dataset(40, RECIPE), create_teacher(tiny_model(seed=1))
    build_cache(teacher, dataset, tmp_path / "t.h5", BuildConfig(codec="float32", num_workers=0))
    cache = open_cache(tmp_path / "t.h5", dataset)
    loader = ReplayLoader(dataset.with_teacher_view(), EpochSampler(range(40), 8, num_views=2), Normalization())
    for batch in loader:
        assert batch.input.shape[-1] == 32
        assert batch.teacher_input is not None
        assert batch.teacher_input.shape[-1] == 48
        cached, live = cache(batch).logits, teacher.for_input(Normalization())(batch).logits
        assert cached is not None
        assert live is not None
        torch.testing.assert_close(cached.log_softmax(1), live.log_softmax(1), rtol=0, atol=1e-5)
        moved = batch.to("cpu")
        assert moved.teacher_input is batch.teacher_input
    plain = dataclasses.replace(RECIPE, teacher_size=None)
    with pytest.raises(CacheMismatchError, match=r"recipe\.teacher_size = 48, this run has None"):
        open_cache(tmp_path / "t.h5", digits_dataset(40, plain))


def test_without_a_teacher_size_both_see_one_view() -> None:
    dataset = digits_dataset(4, dataclasses.replace(RECIPE, teacher_size=None))
    assert dataset.with_teacher_view()[0, 0].teacher_image is None
    assert torch.equal(dataset.for_teacher()[1, 1].image, dataset[1, 1].image)


def test_a_task_in_the_loop_shows_its_own_teacher_the_larger_view() -> None:
    sizes = []
    model = tiny_model(seed=1)
    model.register_forward_pre_hook(lambda module, arguments: sizes.append(arguments[0].shape[-1]))
    dataset = digits_dataset(16, RECIPE).with_teacher_view()
    task = LogitDistillationTask(tiny_model("test_vit"), model)
    loader = ReplayLoader(dataset, EpochSampler(range(16), 8, num_views=2), Normalization())
    train(task, loader, TrainConfig(epochs=1, batch_size=8))
    assert sizes == [48, 48]
