"""The labels of a run's images: whether there are any, whether they are in range, and the names of their classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from kdkit import losses
from kdkit.cache import CacheReader
from kdkit.data import ReplayedDataset
from kdkit.errors import ClassMismatchError, ConfigError, DatasetError
from kdkit.tasks import TrainingTask
from kdkit.teachers import Teacher
from kdkit.training.config import DistillConfig


def adapt_to_labels(config: DistillConfig, dataset: ReplayedDataset) -> DistillConfig:
    """The configuration for these images: without a single label, the loss on labels has the weight 0.

    Raises:
        DatasetError: no image has a label, and there is no teacher to learn from.
        ConfigError: an image has no label, and a distillation loss needs one of each.
    """
    num_unlabelled = count_unlabelled(dataset)
    if num_unlabelled == 0:
        return config
    names = config.distill_loss if isinstance(config.distill_loss, Mapping) else (config.distill_loss,)
    needy = [name for name in names if name in losses.available() and losses.needs_target(name)]
    if config.has_teacher and needy:
        raise ConfigError(
            f"the loss {needy[0]!r} needs the label of each image, and {num_unlabelled:,} of {len(dataset):,} images "
            f"of {config.data!r} have none: take a loss without labels, such as kl"
        )
    if num_unlabelled < len(dataset):
        return config
    if not config.has_teacher:
        raise DatasetError(
            f"no image of {config.data!r} has a label, and there is no teacher: give --cache FILE, --teacher NAME or "
            "a folder of class folders"
        )
    return dataclasses.replace(config, task_loss_weight=0.0)


def count_unlabelled(dataset: ReplayedDataset) -> int:
    """Images that are known to have no label."""
    return 0 if dataset.targets is None else int((dataset.targets < 0).sum())


def check_labels(dataset: ReplayedDataset, num_classes: int, data: str) -> None:
    """Compares the labels with the number of classes, if they are known before an image is loaded.

    Args:
        dataset: the images.
        num_classes: classes C of the student.
        data: where the images come from, for the message.

    Raises:
        ClassMismatchError: a label is outside 0..C - 1, and is not -1 for no label; names the sample.
    """
    if dataset.targets is None:
        return
    odd = (dataset.targets < -1) | (dataset.targets >= num_classes)
    if odd.any():
        row = int(odd.argmax())
        raise ClassMismatchError(
            f"the label of {dataset.keys[row]!r} in {data!r} is {dataset.targets[row]}: expected 0 to "
            f"{num_classes - 1}, or -1 for no label"
        )


def check_targets(task: TrainingTask, dataset: ReplayedDataset) -> None:
    """Checks that a task takes the kind of targets that a dataset has.

    Raises:
        ConfigError: one of the two is multi-label, the other is not.
    """
    is_multi_label = bool(getattr(dataset, "is_multi_label", False))
    if is_multi_label == task.is_multi_label or (dataset.is_unlabelled and not is_multi_label):
        return
    if is_multi_label:
        raise ConfigError(
            f"the data has several labels per image, which {type(task).__name__} does not take: use "
            "MultiLabelClassificationTask or MultiLabelDistillationTask, or set is_multi_label in a task of your own"
        )
    raise ConfigError(
        f"{type(task).__name__} takes several labels per image, the data has one class index: open it as "
        "kdkit.data.MultiLabelSource(DATA, targets)"
    )


def class_names_of(
    dataset: ReplayedDataset, cache: CacheReader | None, teacher: Teacher | str | None
) -> Sequence[str] | None:
    """Names of the student's classes [C]: the data's, or of images without labels the cache's or the teacher's."""
    if dataset.class_names is not None or not dataset.is_unlabelled:
        return dataset.class_names
    if cache is not None:
        return cache.class_names if cache.names_classes else None  # imported labels may be of other classes
    return teacher.class_names if isinstance(teacher, Teacher) else None
