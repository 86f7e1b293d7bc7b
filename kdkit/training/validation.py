"""The validation images of a run: opened at the size of its views, and compared with the student's classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kdkit.data import ReplayedDataset
from kdkit.dataset import open_dataset
from kdkit.errors import DatasetError
from kdkit.recipe import ViewRecipe
from kdkit.runtime.compare import first_item
from kdkit.teachers.class_indices import is_tellable
from kdkit.training.config import DistillConfig
from kdkit.training.labels import check_labels

_logger = logging.getLogger(__name__)


def open_validation(config: DistillConfig, recipe: ViewRecipe, chosen: Sequence[str] | None = None) -> ReplayedDataset:
    """The validation images, at the size of the training's views, of the `chosen` classes; they must have labels."""
    folder = str(config.validation)
    dataset = open_dataset(folder, recipe=ViewRecipe.evaluation(recipe.size), class_names=chosen, **config.columns)
    if dataset.is_unlabelled:
        raise DatasetError(f"no image of {folder!r} has a label to validate with: give a folder of class folders")
    return dataset.skipping_unreadable() if config.unreadable == "skip" else dataset


def check_validation(
    config: DistillConfig,
    dataset: ReplayedDataset,
    training: ReplayedDataset,
    class_names: Sequence[str] | None,
    num_classes: int,
) -> None:
    """Checks that the validation images are of the student's classes, and their labels in range."""
    names = None if class_names is None else list(class_names)
    is_known = names is not None or not training.is_unlabelled
    own = None if dataset.class_names is None else list(dataset.class_names)
    if own != names if is_known else len(own or ()) not in (0, num_classes):
        expected = _describe_classes(names) if is_known else f"{num_classes} classes without names"
        place, here, there = first_item(own, names)
        first = f" (class {place[1:-1]} is {here!r}, and {there!r} in training)" if place else ""
        remedy = "both must have the same classes"
        if own is None or names is None:
            remedy = "give class folders, or names as labels, in both"
        raise DatasetError(
            f"the validation data {config.validation!r} has {_describe_classes(own)}, the training data "
            f"{expected}{first}: {remedy}"
        )
    if not is_known and own is not None and not is_tellable(own):
        _logger.warning(
            "the training data and the cache or teacher do not name the classes, so those of %r are taken in its order",
            config.validation,
        )
    check_labels(dataset, num_classes, str(config.validation))


def _describe_classes(names: Sequence[str] | None, limit: int = 5) -> str:
    if names is None:
        return "class indices without names"
    return f"the classes [{', '.join(names[:limit])}{', ...' if len(names) > limit else ''}]"
