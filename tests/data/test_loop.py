"""A custom training loop with open_dataset and create_loader, which needs neither sampler nor normalisation by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import RECIPE, digits, digits_dataset, tiny_model, write_digits
from torch import nn

import kdkit
from kdkit.building.config import BuildConfig
from kdkit.data import EpochSampler, ReplayedDataset, create_source
from kdkit.errors import CacheMismatchError, ConfigError, DatasetError
from kdkit.recipe import ViewRecipe
from kdkit.types import Normalization

VIEWS = ViewRecipe(size=32, num_views=2, scale=(0.5, 1.0))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("loop") / "images", 30)


@pytest.fixture(scope="module")
def cache(images: Path) -> Path:
    config = BuildConfig(codec="float32", num_workers=0)
    dataset = kdkit.open_dataset(images, recipe=VIEWS)
    kdkit.build_cache(kdkit.create_teacher(tiny_model(seed=1)), dataset, images.parent / "t.h5", config)
    return images.parent / "t.h5"


def test_a_loop_over_a_cache_needs_the_data_the_cache_and_the_student_alone(images: Path, cache: Path) -> None:
    teacher = kdkit.open_cache(cache)
    dataset = kdkit.open_dataset(images, cache=teacher)
    student = tiny_model()
    task = kdkit.LogitDistillationTask(student, teacher=None)
    loader = kdkit.create_loader(dataset, student, batch_size=8, num_workers=0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    losses: list[float] = []
    for _ in range(4):
        for batch in loader:
            output = task(batch.input, batch.target, teacher_output=teacher(batch))
            optimizer.zero_grad()
            output["loss"].backward()
            optimizer.step()
            losses.append(float(output["loss"].detach()))
    assert len(losses) == 4 * len(loader) == 12
    assert sum(losses[-3:]) < sum(losses[:3])


def test_the_recipe_is_the_caches_and_the_cache_is_compared_with_the_data(images: Path, cache: Path) -> None:
    assert kdkit.open_dataset(images, cache=cache).recipe == VIEWS
    assert kdkit.open_dataset(images).recipe == ViewRecipe()
    with pytest.raises(CacheMismatchError, match=r"recipe\.seed"):
        kdkit.open_dataset(images, cache=cache, recipe=ViewRecipe(size=32, num_views=2, scale=(0.5, 1.0), seed=3))
    with pytest.raises(CacheMismatchError, match="kdkit cache extend"):
        kdkit.open_dataset(write_digits(cache.parent / "more", 40), cache=cache)


def test_a_source_object_is_opened_as_a_path_is(images: Path, cache: Path) -> None:
    dataset = kdkit.open_dataset(create_source(images), cache=cache)
    assert list(dataset.keys) == list(kdkit.open_dataset(str(images), cache=str(cache)).keys)
    with pytest.raises(DatasetError, match="no image folder"):
        kdkit.open_dataset(images.parent / "nothing")


def test_passes_are_epochs_and_set_epoch_chooses_another() -> None:
    loader = kdkit.create_loader(digits_dataset(12), tiny_model(), batch_size=4, num_workers=0)
    sampler = EpochSampler(range(12), 4, num_views=2)

    def expected(epoch: int) -> list[tuple[int, list[int]]]:
        sampler.set_epoch(epoch)
        return [(batch[0][1], [row for row, _ in batch]) for batch in sampler]

    def shown() -> list[Any]:
        return [(int(batch.view[0]), batch.row.tolist()) for batch in loader]  # type: ignore[index, union-attr]

    assert [shown(), shown(), shown()] == [expected(0), expected(1), expected(2)]
    next(iter(loader))  # a pass that is left early was epoch 3
    assert shown() == expected(4)
    loader.set_epoch(1, start_batch=2)
    assert [shown(), shown()] == [expected(1)[2:], expected(2)]


def test_batches_are_in_the_students_normalisation_also_where_a_task_is_given() -> None:
    student = tiny_model()
    student.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}  # type: ignore[assignment]
    dataset = digits_dataset(4)
    for given in (student, kdkit.ClassificationTask(student)):
        (batch,) = kdkit.create_loader(dataset, given, batch_size=4, num_workers=0, shuffle=False)
        pixels = torch.stack([dataset[row, 0].image for row in range(4)]).float() / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
        torch.testing.assert_close(batch.input, (pixels - mean) / std)
    assert kdkit.create_loader(dataset, nn.Flatten(), batch_size=4).normalization == Normalization()


@pytest.mark.parametrize(
    ("count", "batch_size", "shuffle", "sizes"),
    [(9, 4, True, [4, 4]), (9, 4, False, [4, 4, 1]), (3, 4, True, [3]), (4, 4, True, [4])],
)
def test_a_remainder_is_dropped_while_shuffling_unless_it_is_all(
    count: int, batch_size: int, shuffle: bool, sizes: list[int]
) -> None:
    loader = kdkit.create_loader(
        digits_dataset(count), tiny_model(), batch_size=batch_size, num_workers=0, shuffle=shuffle
    )
    assert [len(batch.target) for batch in loader] == sizes


def test_each_rank_loads_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdkit.runtime.distributed.world_size", lambda: 2)
    rows = []
    for rank in range(2):
        monkeypatch.setattr("kdkit.runtime.distributed.rank", lambda rank=rank: rank)
        loader = kdkit.create_loader(digits_dataset(12), tiny_model(), batch_size=3, num_workers=0)
        rows.append({row for batch in loader if batch.row is not None for row in batch.row.tolist()})
    assert rows[0] | rows[1] == set(range(12))
    assert not rows[0] & rows[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views_per_decode": 3}, "views_per_decode must be from 1 to the 2 views of the recipe .num_views., got 3"),
        ({"views_per_decode": 0}, "views_per_decode must be from 1 to the 2 views of the recipe .num_views., got 0"),
        ({"num_workers": "many"}, "num_workers must be auto, or 0 or more, got 'many'"),
        ({"num_workers": -1}, "num_workers must be auto, or 0 or more, got -1"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kdkit.create_loader(digits_dataset(4), tiny_model(), **{"batch_size": 2, **options})


def test_automatic_workers_are_this_processs_cpus_shared_among_local_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def workers() -> int:
        return kdkit.create_loader(digits_dataset(4), tiny_model(), batch_size=2)._loader.num_workers

    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)))
    assert workers() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert workers() == 2


def test_a_dataset_without_labels_delivers_minus_one(tmp_path: Path) -> None:
    for row in range(3):
        digits(3)[row][0].save(tmp_path / f"{row}.png")
    dataset = kdkit.open_dataset(tmp_path, recipe=VIEWS)
    assert dataset.class_names is None
    (batch,) = kdkit.create_loader(dataset, tiny_model(), batch_size=3, num_workers=0)
    assert batch.target.tolist() == [-1, -1, -1]


def test_a_dataset_and_its_loader_show_what_they_are_in_one_line(images: Path) -> None:
    dataset = kdkit.open_dataset(images, recipe=VIEWS)
    shown = f"ReplayedDataset(FolderSource('{images}': 30 images, 10 classes), size=32, num_views=2, scale=(0.5, 1.0))"
    assert repr(dataset) == shown
    loader = kdkit.create_loader(dataset, tiny_model(), batch_size=8, num_workers=0)
    assert repr(loader) == f"ReplayLoader(3 batches of 8, 0 workers, on cpu: {shown})"
    assert "uint8 [5, 8, 8]: 5 images, 10 classes" in repr(ReplayedDataset(digits(5), RECIPE))
