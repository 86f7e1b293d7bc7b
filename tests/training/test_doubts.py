"""What is allowed and rarely meant is told before the first step."""

from __future__ import annotations

import numpy as np
import pytest
from support import digits_dataset

from kdkit.data import ArraySource, ReplayedDataset
from kdkit.recipe import ViewRecipe
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.header import doubts_of

ONE_VIEW, ONE_UPDATE = "one view, so all {} epochs show the same pixels", "an epoch is a single update"
FEW_VIEWS, RANDOM_BODY = "4 views, so 100 epochs show each of them 25 times", "its weights may be random"


@pytest.mark.parametrize(
    ("recipe", "train", "batches", "expected"),
    [
        (ViewRecipe(size=32), {"epochs": 100}, 4, [ONE_VIEW.format(100)]),
        (ViewRecipe(size=32), {"epochs": 2}, 4, []),
        (ViewRecipe(size=32, num_views=10), {"epochs": 100}, 4, []),
        (ViewRecipe(size=32, num_views=4), {"epochs": 100}, 4, [FEW_VIEWS]),
        (ViewRecipe(size=32, num_views=10), {"epochs": 100, "frozen_epochs": 5}, 4, [RANDOM_BODY]),
        (ViewRecipe.evaluation(32), {"epochs": 100}, 4, []),
        (ViewRecipe(size=32, num_views=10), {"epochs": 100}, 1, [ONE_UPDATE]),
        (ViewRecipe(size=32, num_views=10), {"epochs": 100, "accumulate": 4}, 4, [ONE_UPDATE]),
        (ViewRecipe(size=32, num_views=10), {"epochs": 1}, 1, []),
        (ViewRecipe(size=32), {"epochs": 100}, 1, [ONE_VIEW.format(100), ONE_UPDATE]),
    ],
)
def test_few_views_for_many_epochs_one_update_per_epoch_and_a_random_body_are_told(
    recipe: ViewRecipe, train: dict[str, int], batches: int, expected: list[str]
) -> None:
    config = DistillConfig(data="d", output="o", student="s", train=TrainConfig(**train))
    found = doubts_of(config, digits_dataset(40, recipe), batches)
    assert [text in doubt for text, doubt in zip(expected, found, strict=True)] == [True] * len(expected)


@pytest.mark.parametrize(
    ("targets", "names", "weight", "warning"),
    [
        ([1, 1, -1], ["cat", "dog"], 1.0, "every label is 'dog', so"),
        ([1, 1, -1], None, 1.0, "every label is 1, so"),
        ([1, 1, 1], ["cat", "dog"], 0.0, ""),
        ([1, 0, -1], ["cat", "dog"], 1.0, ""),
        ([-1, -1, -1], None, 1.0, ""),
    ],
)
def test_labels_of_one_class_alone_are_told(
    targets: list[int], names: list[str] | None, weight: float, warning: str
) -> None:
    config = DistillConfig(data="d", output="o", student="s", cache="t.h5", task_loss_weight=weight)
    source = ArraySource(np.zeros((3, 8, 8), np.uint8), targets, class_names=names)
    found = doubts_of(config, ReplayedDataset(source, ViewRecipe.evaluation(8)), 4)
    assert len(found) == bool(warning)
    assert warning in "".join(found)
