"""Views do not depend on what a program sets for all of its torch, and a dataset must not draw for itself."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import RECIPE, digits, digits_dataset
from torch.utils.data import Dataset, Subset
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from kdkit.data import ArraySource, EpochSampler, MappedSource, ReplayedDataset, ReplayLoader
from kdkit.data.views.record import RecordedSteps
from kdkit.errors import DatasetError
from kdkit.recipe import ViewRecipe
from kdkit.types import Normalization

RECIPES = {
    "random augment": RECIPE,
    "colour jitter": ViewRecipe(size=24, color_jitter=0.4, num_views=2),
    "erasing by pixel": ViewRecipe(size=24, erasing=1.0, erasing_mode="pixel", num_views=2),
    "erasing by colour": ViewRecipe(size=24, erasing=1.0, erasing_mode="rand", num_views=2),
    "mixing": ViewRecipe(size=24, mixup_alpha=0.5, cutmix_alpha=0.5, num_views=2),
}


@pytest.fixture(params=["dtype", "device"])
def other_default(request: pytest.FixtureRequest) -> Iterator[None]:
    """Another default dtype or device of torch."""
    if request.param == "dtype":
        torch.set_default_dtype(torch.float64)
    else:
        torch.set_default_device("meta")
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def views(dataset: ReplayedDataset) -> list[bytes]:
    return [dataset[row, view].image.numpy().tobytes() for row in range(6) for view in range(2)]


@pytest.fixture(scope="module")
def expected() -> dict[str, list[bytes]]:
    return {name: views(digits_dataset(6, recipe)) for name, recipe in RECIPES.items()}


def test_batches_are_of_float32_under_another_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        (batch,) = ReplayLoader(
            digits_dataset(6, RECIPES["mixing"]), EpochSampler(range(6), 6, num_views=2), Normalization()
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert (batch.input.dtype, batch.target.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.usefixtures("other_default")
def test_views_do_not_depend_on_torchs_defaults(name: str, expected: dict[str, list[bytes]]) -> None:
    before = torch.get_default_dtype(), torch.get_default_device()
    assert views(digits_dataset(6, RECIPES[name])) == expected[name]
    assert (torch.get_default_dtype(), torch.get_default_device()) == before


def test_a_custom_transform_draws_alike_under_another_default_dtype() -> None:
    transform = v2.Compose([v2.Resize((24, 24)), v2.ColorJitter(0.5, 0.5), v2.PILToTensor()])
    recipe = ViewRecipe(size=24, num_views=2)
    expected = views(ReplayedDataset(digits(6), recipe, transform=transform))
    torch.set_default_dtype(torch.float64)
    try:
        assert views(ReplayedDataset(digits(6), recipe, transform=transform)) == expected
    finally:
        torch.set_default_dtype(torch.float32)


class Mine(Dataset[Any]):
    """A map-style dataset with a transform or labels of its own."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.plain = digits(40)
        self.generator = np.random.default_rng(0)
        self.drawn: list[int] = []
        self.opened_by: int | None = None

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, target = self.plain[index]
        self.drawn.append(index)
        self.opened_by = self.opened_by or os.getpid()  # as a file that is opened when it is first needed
        if self.kind == "torch":
            image = v2.RandomHorizontalFlip()(image)
        elif self.kind == "python":
            image = image.rotate(random.choice((0, 90)))
        elif self.kind == "numpy":
            image = image.rotate(90 * int(self.generator.integers(4)))
        elif self.kind == "rare" and self.generator.random() < 0.2:
            image = image.rotate(90)
        elif self.kind == "label" and self.generator.random() < 0.3:
            target = 9 - target
        elif self.kind == "fixed":
            image = image.rotate(index)
        return image, target


@pytest.mark.parametrize("kind", ["torch", "python", "numpy", "rare", "label"])
@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, range(20))])
def test_a_dataset_that_draws_for_itself_is_refused_at_construction(kind: str, wrap: Any) -> None:
    named = "label" if kind == "label" else "image"
    with pytest.raises(DatasetError, match=rf"Mine returned another {named} for row \d+ .* take its random transform"):
        MappedSource(wrap(Mine(kind)))


def test_torchvisions_random_transform_is_refused_at_construction() -> None:
    transform = v2.RandomResizedCrop(24)
    with pytest.raises(DatasetError, match="FakeData returned another image"):
        MappedSource(FakeData(8, (3, 32, 32), transform=transform))
    assert len(MappedSource(FakeData(8, (3, 32, 32), transform=v2.CenterCrop(24)))) == 8


def test_a_source_of_ones_own_that_draws_is_refused_at_construction() -> None:
    class Own:
        keys, class_names = [str(row) for row in range(40)], None

        def __init__(self) -> None:
            self.mapped = Mine("numpy")

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return self.mapped[index]

    with pytest.raises(DatasetError, match="Own returned another image"):
        ReplayedDataset(Own(), RECIPE)


def test_a_fixed_transform_is_taken_and_random_states_stay_what_they_were() -> None:
    random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    data = Mine("fixed")
    assert len(MappedSource(data)) == 40
    assert 16 <= len(data.drawn) <= 64
    assert data.opened_by is None
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.random.get_state()[1].tolist() == states[2]


class Records:
    """Stands for a cache with recorded mixing."""

    def __init__(self, share: float, box: tuple[int, ...]) -> None:
        self.record = np.zeros(1, RecordedSteps.parse("center+mixing").dtype)
        self.record["share"], self.record["box"] = share, box

    def match_keys(self, keys: Any) -> Any:
        return np.arange(len(keys))

    def read_records(self, rows: Any, view: int) -> torch.Tensor:
        return torch.from_numpy(self.record.view(np.uint8).reshape(1, -1).copy())


def recorded(share: float, box: tuple[int, ...]) -> ReplayedDataset:
    recipe = ViewRecipe(size=8, interpolation="bilinear", recorded="center+mixing")
    plain = ArraySource(np.zeros((2, 8, 8), np.uint8), [0, 1], class_names=["a", "b"])
    return ReplayedDataset(plain, recipe, records=Records(share, box))


@pytest.mark.parametrize(
    ("share", "box"),
    [
        (1.5, (0, 0, 0, 0)),
        (-0.1, (0, 0, 0, 0)),
        (float("nan"), (0, 0, 0, 0)),
        (1.0, (0, 0, 9, 8)),
        (1.0, (0, 0, 8, 60000)),
        (1.0, (5, 0, 4, 8)),
        (1.0, (0, 5, 8, 4)),
    ],
)
def test_a_recorded_mix_outside_its_bounds_is_refused(share: float, box: tuple[int, ...]) -> None:
    with pytest.raises(DatasetError, match="expected a share from 0 to 1 and a box"):
        recorded(share, box)[1, 0]


def test_a_recorded_mix_within_its_bounds_is_shown() -> None:
    for share, box in ((0.0, (0, 0, 0, 0)), (1.0, (0, 0, 8, 8)), (0.5, (2, 2, 4, 4))):
        assert 0 <= recorded(share, box)[1, 0].share <= 1


def test_a_loader_of_a_mapped_dataset_in_workers_is_not_checked_again() -> None:
    data = Mine("fixed")
    dataset = ReplayedDataset(MappedSource(data), ViewRecipe(size=8))
    checked = len(data.drawn)
    batches = list(ReplayLoader(dataset, EpochSampler(range(40), 10), Normalization()))
    assert sum(len(batch.target) for batch in batches) == 40
    assert sorted(data.drawn[checked:]) == list(range(40))
