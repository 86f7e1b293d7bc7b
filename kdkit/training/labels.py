"""The labels of a run's images: whether there are any, whether they are in range, and the names of their classes.

A checkpoint keeps the labels (`LabelRecord`), so that no run resumes with other ones.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timm.utils import unwrap_model

from kdkit import losses
from kdkit.cache import CacheReader
from kdkit.config import name_data
from kdkit.data import ReplayedDataset, ReplayLoader
from kdkit.data.sources.labels import check_range
from kdkit.data.sources.multi_label import multi_labels_of
from kdkit.errors import CheckpointError, ConfigError, DatasetError
from kdkit.tasks import DistillationTask, TrainingTask
from kdkit.teachers import Teacher
from kdkit.training.config import DistillConfig
from kdkit.types import Batch


@dataclass(frozen=True)
class LabelRecord:
    """The label of each training image, as a checkpoint keeps them: compressed: of 1.28 million images a
    few kB in the order of classes, 2.3 MB in a random order."""

    keys: Sequence[str]
    """Keys of the images [N]."""
    packed: bytes | None
    """The labels [N], int32, little-endian, compressed by zlib; of several labels per image the CRC-32 of its vector;
    None if they are known only after loading."""
    is_multi_label: bool = False
    """Whether an image has several labels."""

    @classmethod
    def of(cls, dataset: ReplayedDataset) -> LabelRecord:
        """The labels of `dataset`."""
        targets: Any = dataset.targets
        if (vectors := multi_labels_of(dataset.source)) is not None:
            targets = np.array([zlib.crc32(vector.tobytes()) for vector in vectors], dtype=np.uint32)
        packed = None if targets is None else zlib.compress(targets.astype("<i4").tobytes())
        return cls(dataset.keys, packed, vectors is not None)

    def check_same(self, packed: Any, path: Path, name: str = "") -> None:
        """Compares the labels with those in the checkpoint at `path`, made from the same images.

        Args:
            packed: `packed` of the checkpoint's record; None is not compared.
            path: the checkpoint.
            name: what the message calls an image, with a space after it.

        Raises:
            DatasetError: names the first image that has another label.
            CheckpointError: the checkpoint's labels are not those of these images.
        """
        if packed is None or self.packed is None or packed == self.packed:  # None: older, or not known
            return
        then, now = _unpack(packed, len(self.keys), path), _unpack(self.packed, len(self.keys), path)
        row = int((then != now).argmax())
        if then[row] != now[row]:
            what = f"for {name}{self.keys[row]!r}"
            values = f"the label {then[row]} {what}, this run has {now[row]}"
            if self.is_multi_label:
                values = f"other labels {what} than this run has"
            raise DatasetError(
                f"{str(path)!r} was made with {values}: "
                "resume with the same labels, or start another run in another folder"
            )


def _unpack(packed: Any, count: int, path: Path) -> np.ndarray[Any, np.dtype[np.int32]]:
    try:
        return np.frombuffer(zlib.decompressobj().decompress(packed, 4 * count), "<i4", count)
    except (zlib.error, ValueError, TypeError) as error:
        raise CheckpointError(f"{str(path)!r} holds no labels of these {count:,} images ({error})") from error


def adapt_to_labels(config: DistillConfig, dataset: ReplayedDataset) -> DistillConfig:
    """The configuration for these images: without a single label, the loss on labels has the weight 0.

    Raises:
        DatasetError: no image has a label, and there is no teacher to learn from.
        ConfigError: no image has a label, and a distillation loss needs labels.
    """
    if not dataset.is_unlabelled:
        return config
    data = name_data(config.data)
    if not config.has_teacher:
        raise DatasetError(
            f"no image of {data!r} has a label, and there is no teacher: give --cache FILE, --teacher NAME or "
            "a folder of class folders"
        )
    needy = [name for name in config.loss_names if name in losses.available() and losses.needs_target(name)]
    if needy:
        raise ConfigError(
            f"the loss {needy[0]!r} needs labels, and no image of {data!r} has one: take a loss without labels, "
            "such as kl"
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
        LabelError: a label is outside 0..C - 1, and is not -1 for no label; names the sample.
    """
    if dataset.targets is not None:
        check_range(dataset.targets, num_classes, dataset.keys, data)


def labelled_batches(loader: ReplayLoader, task: TrainingTask) -> Iterator[Batch]:
    """The batches of `loader`, whose labels are compared with the number of the student's classes.

    Labels that are known before an image is loaded are compared before the first batch, others batch by batch, which
    waits for the device. A task that trains without labels may have any.

    Raises:
        LabelError: a label is outside 0..C - 1, and is not -1 for no label; names the sample.
    """
    student: Any = unwrap_model(task.get_eval_model())
    num_classes, dataset = getattr(student, "num_classes", None), loader.dataset
    if not num_classes or not _uses_labels(task):
        yield from loader
        return
    check_labels(dataset, num_classes, type(dataset.source).__name__)
    if dataset.targets is not None:  # once an epoch: a source of a million labels makes an array of them
        yield from loader
        return
    for batch in loader:
        if batch.target.ndim == 1 and batch.row is not None:
            check_range(batch.target.cpu().numpy(), num_classes, [dataset.keys[row] for row in batch.row.tolist()])
        yield batch


def _uses_labels(task: TrainingTask) -> bool:
    """Whether a loss of the task depends on the labels."""
    if not isinstance(task, DistillationTask):
        return True
    terms = [term for term in task.terms if term.compares_logits]
    return task.task_loss_weight != 0 or any(losses.needs_target(term.loss or term.name) for term in terms)


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
