"""Evaluation over a padded sampler: every image counts once, also where others cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import tiny_model, write_digits

from kdkit import ClassificationTask
from kdkit.data import EpochSampler, ReplayLoader
from kdkit.dataset import open_dataset
from kdkit.errors import DatasetError
from kdkit.recipe import ViewRecipe
from kdkit.training.evaluate import evaluate
from kdkit.types import Normalization


class Counting:
    """An evaluator that keeps what it is given."""

    def __init__(self) -> None:
        self.targets: list[int] = []

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        assert len(output) == len(target)
        self.targets += target.tolist()

    def compute(self, distributed: bool = False) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(
    ("count", "damaged"), [(3, ()), (3, (1,)), (7, ()), (7, (1,)), (7, (0, 2)), (9, (8,)), (10, (0, 2)), (10, (8, 9))]
)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_image_that_can_be_read_counts_once_over_all_ranks(
    tmp_path: Path, count: int, ranks: int, damaged: tuple[int, ...]
) -> None:
    write_digits(tmp_path, 10)
    dataset = open_dataset(tmp_path, recipe=ViewRecipe.evaluation(32)).selecting(range(count)).skipping_unreadable()
    labels = dataset.targets
    assert labels is not None
    for row in damaged:
        (tmp_path / dataset.keys[row]).write_bytes(b"no image")
    counted = []
    for rank in range(ranks):
        task = ClassificationTask(tiny_model())
        evaluator = Counting()
        task.create_evaluator = lambda evaluator=evaluator, **_: evaluator  # type: ignore[method-assign]
        sampler = EpochSampler(range(count), 4, shuffle=False, rank=rank, world_size=ranks)
        loader = ReplayLoader(dataset, sampler, Normalization())
        loader.on_skip = lambda key, reason: None
        for _ in range(2):  # a further pass counts the same
            evaluator.targets = []
            if {row for batch in sampler for row, _ in batch} <= set(damaged):
                with pytest.raises(DatasetError, match="none of the"):
                    evaluate(task, loader)
            else:
                evaluate(task, loader)
        counted += evaluator.targets
    assert sorted(counted) == sorted(int(labels[row]) for row in range(count) if row not in damaged)


@pytest.mark.parametrize("mapped", [False, True])
def test_repeated_rows_and_views_that_stand_for_others_count(tmp_path: Path, mapped: bool) -> None:
    dataset = open_dataset(write_digits(tmp_path, 10), recipe=ViewRecipe(size=32, num_views=2))
    labels = dataset.targets
    assert labels is not None
    task, evaluator, rows = ClassificationTask(tiny_model()), Counting(), [0, 0, 0, 1, 2, 3]
    task.create_evaluator = lambda **_: evaluator  # type: ignore[method-assign]
    sampler = EpochSampler(rows, 4, shuffle=False, num_views=2)
    if mapped:
        sampler.shown_views = torch.ones(10, 2, dtype=torch.int64)
    evaluate(task, ReplayLoader(dataset, sampler, Normalization()))
    assert evaluator.targets == [int(labels[row]) for row in rows]


def test_batches_without_a_readable_image_are_told_to_who_counts_batches(tmp_path: Path) -> None:
    dataset = open_dataset(write_digits(tmp_path, 10), recipe=ViewRecipe.evaluation(32)).skipping_unreadable()
    for row in (2, 3, 8, 9):
        (tmp_path / dataset.keys[row]).write_bytes(b"no image")
    loader = ReplayLoader(dataset, EpochSampler(range(10), 2, shuffle=False), Normalization())
    loader.on_skip = lambda key, reason: None
    calls: list[int] = []
    evaluate(ClassificationTask(tiny_model()), loader, between=lambda: calls.append(1))
    assert len(calls) == len(loader) == 5
