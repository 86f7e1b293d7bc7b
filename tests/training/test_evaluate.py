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
