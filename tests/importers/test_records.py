"""Records of views: their bytes, and what is rendered from them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_caches import DATA, TRAIN, import_sample, photographs
from PIL import Image
from torchvision.transforms import InterpolationMode, functional
from torchvision.transforms.autoaugment import _apply_op

from kdkit.cache import open_cache
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.data.views.operations import OPERATIONS, apply_operation
from kdkit.data.views.record import (
    RecordedSteps,
    pack_operations,
    pack_rectangle,
    unpack_operations,
    unpack_rectangle,
)
from kdkit.data.views.recorded_renderer import RecordedRenderer
from kdkit.dataset import open_dataset
from kdkit.errors import CacheMismatchError, ConfigError, DatasetError
from kdkit.recipe import ViewRecipe
from kdkit.types import Normalization

MAGNITUDES = {
    **dict.fromkeys(("ShearX", "ShearY", "Brightness", "Color", "Contrast", "Sharpness"), (0.27, -0.27)),
    **dict.fromkeys(("TranslateX", "TranslateY", "Rotate"), (8.7, -8.7)),
    "Posterize": (7.0, 1.0),
    "Solarize": (178.5, 0.0),
}


def photograph() -> Image.Image:
    return photographs()[0][0]


@pytest.mark.parametrize(("number", "name"), list(enumerate(OPERATIONS)))
def test_an_operation_is_the_one_of_torchvision_with_this_magnitude(number: int, name: str) -> None:
    for magnitude in MAGNITUDES.get(name, (0.0,)):
        expected = _apply_op(photograph(), name, magnitude, InterpolationMode.NEAREST, None)
        assert apply_operation(photograph(), number, magnitude).tobytes() == expected.tobytes()


def test_an_operation_that_is_none_is_refused() -> None:
    for number, magnitude in ((14, 0.0), (1, float("nan"))):
        with pytest.raises(DatasetError, match="expected 0 to 13"):
            apply_operation(photograph(), number, magnitude)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_operation_numbers_come_back(count: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 16, (50, count))
    packed = pack_operations(numbers)
    assert packed.shape == (50, (count + 1) // 2)
    assert [unpack_operations(row, count) for row in packed] == numbers.tolist()


def test_rectangles_come_back_from_one_number_of_48_bits() -> None:
    sides = np.random.default_rng(0).integers(0, 4096, (50, 4))
    packed = pack_rectangle(sides)
    assert [unpack_rectangle(row) for row in packed] == [tuple(row) for row in sides.tolist()]
    number = int.from_bytes(packed[0].tobytes(), "little")
    assert number == sum(int(side) << 12 * place for place, side in enumerate(sides[0]))


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("crop", 9),
        ("fractions", 17),
        ("center", 1),
        ("crop+ops2+erasing", 24),
        ("crop+ops2+erasing+mixing", 64),
        ("resize256+pad16+crop+ops3", 8 + 1 + 2 + 12),
    ],
)
def test_steps_are_named_by_a_text_and_fix_the_number_of_bytes(text: str, num_bytes: int) -> None:
    steps = RecordedSteps.parse(text)
    assert str(steps) == text
    assert steps.dtype.itemsize == num_bytes


@pytest.mark.parametrize(
    "text", ["", "ops2", "crop+center", "crop+crop", "crop+ops9", "crop+ops0", "crop+blur", "Crop"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="recorded steps"):
        RecordedSteps.parse(text)


def test_a_record_is_read_by_the_bytes_that_the_format_page_names(tmp_path: Path) -> None:
    """View 4 of photograph 0 of the sample randaug, as ml-dr's own file says, taken from the bytes by hand."""
    import_sample("ml-dr/randaug", tmp_path / "teacher.h5")
    payload = open_cache(tmp_path / "teacher.h5").read_records(np.array([0]), 4)[0].numpy().tobytes()
    assert [int.from_bytes(payload[at : at + 2], "little") for at in range(0, 8, 2)] == [2, 4, 135, 135]
    assert payload[8] == 1
    assert payload[9] == 2 | 5 << 4  # ShearY, Rotate
    assert np.frombuffer(payload[10:18], "<f4").tolist() == [np.float32(0.09), 9.0]
    erased = int.from_bytes(payload[18:24], "little")
    assert [erased >> 12 * place & 4095 for place in range(4)] == [20, 1, 21, 51]


def test_a_resized_and_padded_crop_is_that_of_torchvision() -> None:
    steps = RecordedSteps.parse("resize100+pad8+crop")
    record = np.zeros(1, steps.dtype)
    record["own"]["crop"] = (3, 5, 64, 64)
    shown = RecordedRenderer(ViewRecipe(size=64, interpolation="bilinear", recorded=str(steps)), 64)
    resized = functional.pad(functional.resize(photograph(), 100), 8)
    expected = functional.pil_to_tensor(functional.crop(resized, 3, 5, 64, 64))
    assert torch.equal(shown(photograph(), record["own"][0]), expected)


def test_a_centre_crop_takes_no_box() -> None:
    steps = RecordedSteps.parse("resize80+center")
    shown = RecordedRenderer(ViewRecipe(size=64, interpolation="bilinear", recorded=str(steps)), 64)
    expected = functional.center_crop(functional.resize(photograph(), 80), 64)
    assert torch.equal(shown(photograph(), np.zeros(1, steps.dtype)["own"][0]), functional.pil_to_tensor(expected))


def test_a_crop_outside_the_image_says_that_it_is_another_image() -> None:
    record = np.zeros(1, RecordedSteps.parse("crop").dtype)
    record["own"]["crop"] = (0, 0, 200, 151)
    shown = RecordedRenderer(ViewRecipe(size=64, interpolation="bilinear", recorded="crop"), 64)
    with pytest.raises(DatasetError, match="another image than the one recorded"):
        shown(photograph(), record["own"][0])


@pytest.mark.parametrize("name", ["ml-dr/randaug_mixing", "fkd/hard"])
def test_views_are_the_same_in_workers_and_after_pickling(name: str, tmp_path: Path) -> None:
    import_sample(name, tmp_path / "teacher.h5")
    dataset = open_dataset(TRAIN, cache=tmp_path / "teacher.h5")
    copied = pickle.loads(pickle.dumps(dataset))
    loader = ReplayLoader(dataset, EpochSampler(range(6), 3, num_views=6), Normalization(), num_workers=2)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader.pixel_batches():
            for image, row, view in zip(batch.images, batch.row.tolist(), batch.view.tolist(), strict=True):
                assert torch.equal(image, dataset[row, view].image)
                assert torch.equal(image, copied[row, view].image)


@pytest.mark.parametrize("name", ["ml-dr/randaug_mixing", "fkd/hard"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_recorded_views_that_share_a_decode_are_those_of_plain_epochs(
    name: str, num_workers: int, tmp_path: Path
) -> None:
    import_sample(name, tmp_path / "teacher.h5")
    dataset = open_dataset(TRAIN, cache=tmp_path / "teacher.h5")
    sampler = EpochSampler(range(6), 4, num_views=6, views_per_decode=3)
    loader, pairs = ReplayLoader(dataset, sampler, Normalization(), num_workers=num_workers), []
    for _ in range(3):
        for batch in loader.pixel_batches():
            for image, row, view in zip(batch.images, batch.row.tolist(), batch.view.tolist(), strict=True):
                assert torch.equal(image, dataset[row, view].image)
                pairs.append((row, view))
    assert sorted(pairs) == [(row, view) for row in range(6) for view in range(3)]


def test_a_mixed_view_has_the_labels_of_both_images_by_their_share_of_the_pixels(tmp_path: Path) -> None:
    """Photograph 0, view 2: mixup keeps 0.466 of it, then cutmix gives 39 x 41 of 64 x 64 pixels to photograph 0."""
    import_sample("ml-dr/randaug_mixing", tmp_path / "teacher.h5")
    dataset = open_dataset(TRAIN, cache=tmp_path / "teacher.h5")
    sample = dataset[0, 2]
    assert sample.partner_target == sample.target == 0
    assert sample.share == pytest.approx(0.4655093615601835 * (1 - 39 * 41 / 64**2))
    assert dataset[0, 4].partner_target == 3  # china_A.JPEG, image 5
    assert dataset[1, 1].partner_target == dataset[1, 1].target
    assert dataset[1, 1].share == 1  # not mixed


def test_recorded_views_need_their_cache_and_all_images_of_it(tmp_path: Path) -> None:
    import_sample("ml-dr/randaug", tmp_path / "teacher.h5")
    cache = open_cache(tmp_path / "teacher.h5")
    with pytest.raises(ConfigError, match=r"open the data with it, kdkit\.open_dataset"):
        ReplayedDataset(photographs(), cache.recipe)
    source = photographs()
    source.keys = [*source.keys[:-1], "n04/other.JPEG"]
    with pytest.raises(CacheMismatchError, match=r"n04/other\.JPEG"):
        ReplayedDataset(source, cache.recipe, records=cache)


def test_a_recipe_of_recorded_views_draws_nothing() -> None:
    for odd in ({"hflip": 0.1}, {"auto_augment": "3a"}, {"mixup_alpha": 1.0}, {"interpolation": "random"}):
        with pytest.raises(ConfigError, match="recorded views"):
            ViewRecipe(recorded="crop", **odd)


def test_views_with_recorded_pixels_have_one_size_and_others_any() -> None:
    assert ViewRecipe(recorded="fractions", interpolation="bilinear", teacher_size=32).teacher_size == 32
    recipe = ViewRecipe(size=64, recorded="crop+ops2", interpolation="bilinear")
    with pytest.raises(ConfigError, match="pixels of size 64"):
        RecordedRenderer(recipe, 32)


def test_the_samples_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 2_000_000
