"""The loader that a training loop needs, from a dataset and a student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdkit.data.dataset import ReplayedDataset
from kdkit.data.loader import ReplayLoader
from kdkit.data.sampler import EpochSampler
from kdkit.errors import ClassMismatchError, ConfigError
from kdkit.runtime import distributed
from kdkit.runtime.hardware import choose_workers
from kdkit.types import Normalization


def create_loader(
    dataset: ReplayedDataset,
    student: nn.Module,
    *,
    batch_size: int,
    views_per_decode: int = 1,
    num_workers: int | Literal["auto"] = "auto",
    shuffle: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
    num_epochs: int | None = None,
    rows: Sequence[int] | None = None,
    shown_views: Tensor | None = None,
) -> ReplayLoader:
    """Creates a loader of normalised batches for one student; under torch.distributed, of this rank's images.

    Pass e over the loader is epoch e, counted from 0: it has its own order, and shows view e mod V. `set_epoch(e)`
    before a pass chooses another epoch, and the passes after it continue from there. A pass counts once it has begun.
    While shuffling, a last batch that is not full is left out, unless it is the only one: a batch of one image would
    break batch normalisation. Without shuffling every image is shown.

    Args:
        dataset: what to load, e.g. from `kdkit.open_dataset`; `dataset.with_teacher_view()` where a live teacher sees
            the views at its own size.
        student: the model, with the normalisation of its input in `pretrained_cfg`, else ImageNet's; or its task.
        batch_size: images per batch and rank.
        views_per_decode: number k of views per decoded image, adjacent in one batch, at most the recipe's; k passes
            show what k passes without it show. Let batch_size be a multiple of k, or of 2 k where views are mixed.
        num_workers: processes that load and augment images; 0 loads in the calling process, "auto" takes this
            rank's share of the CPUs that this process may use, 1 to 16.
        shuffle, seed: whether each epoch has its own order, and the seed of it; the views have the recipe's.
        device: where batches arrive; the student's device by default.
        num_epochs: number of passes, if known: the last group of views_per_decode is then as short as those left.
        rows: dataset rows to load; all by default.
        shown_views: the view to show in place of each view of each row of the dataset, int64 [N, V]; None: each itself.

    Raises:
        ConfigError: an argument is out of range.
        LabelError: a label is beyond the student's classes; raised while iterating if labels come with their images.
        ClassMismatchError: the live teacher of a task has other classes than the dataset, or in another order, by name.
    """
    _check_views_per_decode(views_per_decode, dataset.recipe.num_views)
    model, rows = _model_of(student), range(len(dataset)) if rows is None else rows
    device = device or next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    dataset = _for_classes_of(dataset, student, model)
    sampler = EpochSampler(
        rows,
        batch_size,
        num_views=dataset.recipe.num_views,
        shuffle=shuffle,
        seed=seed,
        drop_last=shuffle and -(-len(rows) // distributed.world_size()) > batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        views_per_decode=views_per_decode,
        num_epochs=num_epochs,
    )
    sampler.shown_views = shown_views
    workers = choose_workers(num_workers)
    return ReplayLoader(dataset, sampler, Normalization.of(model), device=device, num_workers=workers)


def check_class_order(teacher: Any, dataset: ReplayedDataset) -> None:
    """Compares the classes of a live teacher with those of a dataset, by name where both name them.

    Raises:
        ClassMismatchError: they are others, or in another order.
    """
    names = dataset.class_names
    if names is not None and hasattr(teacher, "for_classes"):
        matched = teacher.for_classes(names)
        if matched.class_names != teacher.class_names:
            raise ClassMismatchError(
                f"the teacher {teacher.name!r} has the classes of the data in another order: pass "
                "teacher.for_classes(dataset.class_names) to the task"
            )


def _for_classes_of(dataset: ReplayedDataset, student: Any, model: Any) -> ReplayedDataset:
    """The dataset, whose labels are compared with the student's classes where a task uses them.

    Its class names are compared with those of a task's live teacher, whose logits are compared.
    """
    if any(term.compares_logits for term in getattr(student, "terms", ())):
        check_class_order(getattr(student, "live_teacher", None), dataset)
    num_classes = getattr(model, "num_classes", None)
    if num_classes and getattr(student, "task_loss_weight", 1) != 0:  # 0 classes: a student without a head
        return dataset.for_classes(num_classes)
    return dataset


def _model_of(student: Any) -> nn.Module:
    """The student of a task, or the model itself."""
    model: nn.Module = student.get_eval_model() if hasattr(student, "get_eval_model") else student
    return model


def _check_views_per_decode(views: int, num_views: int) -> None:
    if not 1 <= views <= num_views:
        raise ConfigError(
            f"views_per_decode must be from 1 to the {num_views} views of the recipe (num_views), got {views}"
        )
