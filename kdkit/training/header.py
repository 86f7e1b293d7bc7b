"""The description of a training run that is shown before its first step."""

from __future__ import annotations

from typing import Any

import torch

from kdkit.cache import CacheReader
from kdkit.config import name_data
from kdkit.data import ReplayedDataset
from kdkit.data.sources.left_out import describe_skipped
from kdkit.resolve import describe_teacher
from kdkit.runtime import distributed
from kdkit.runtime.hardware import describe_device
from kdkit.tasks import TrainingTask
from kdkit.training.components import num_classes_of
from kdkit.training.config import DistillConfig
from kdkit.training.labels import count_unlabelled
from kdkit.training.live import live_part_of, live_teacher_of
from kdkit.training.selection import ChosenSamples
from kdkit.training.setup import describe_speed

_OFTEN = 10  # as often as ImageNet recipes of 100 epochs show each of 10 cached views


def describe_run(
    config: DistillConfig,
    task: TrainingTask,
    dataset: ReplayedDataset,
    validation: ReplayedDataset | None,
    cache: CacheReader | None,
    device: torch.device,
    samples: ChosenSamples,
    precision: str,
) -> dict[str, str]:
    """Label -> text, in reading order: student, images, teacher, loss, views, epochs, device, output.

    `samples` are the ones of the dataset that are trained on, `precision` is that of a live teacher.
    """
    student: Any = task.get_eval_model()
    parameters = sum(parameter.numel() for parameter in student.parameters())
    start = ", pretrained" if config.pretrained else ""
    held_out = "none" if validation is None else f"{len(validation):,} images, {config.validation}"
    processes = "" if distributed.world_size() == 1 else f", {distributed.world_size()} processes"
    recipe, training = dataset.recipe, config.train
    frozen = f", the head alone in the first {training.frozen_epochs}" if training.frozen_epochs else ""
    left_out = "" if samples.shown is None else f", {samples.shown}"
    return {
        "student": f"{config.student}, {parameters / 1e6:.1f} M parameters{start}",
        "images": f"{_describe_images(dataset, len(samples.rows), cache, num_classes_of(task))}, "
        f"{name_data(config.data)}{describe_skipped(dataset.source)}",
        "validation": held_out,
        "teacher": _describe_teacher(config, task, cache, precision),
        "loss": _describe_loss(config, dataset),
        "views": f"{recipe.num_views} per image, {recipe.size} pixels{left_out}",
        "recipe": recipe.describe_steps(),
        "epochs": f"{training.epochs}, in batches of {training.batch_size} images, {training.opt} at {training.lr:g}"
        f"{frozen}",
        "device": f"{describe_device(device)}, {describe_speed(student, training, device)}, {training.workers} loader "
        f"workers{processes}",
        "output": config.output,
    }


def doubts_of(config: DistillConfig, dataset: ReplayedDataset, num_batches: int) -> list[str]:
    """What is allowed and rarely meant: few views, one update per epoch, one class, a random frozen body.

    Args:
        config: the run.
        dataset: the training images.
        num_batches: batches of an epoch.
    """
    training, recipe, doubts = config.train, dataset.recipe, []
    if recipe.augment and training.epochs > _OFTEN * recipe.num_views:
        more = "build the cache with more (--views N)" if config.caches else "give more, --views N"
        one = "one view, so all {} epochs show the same pixels"
        few = f"{recipe.num_views} views, so {{}} epochs show each of them {training.epochs // recipe.num_views} times"
        doubts.append(f"each image has {(one if recipe.num_views == 1 else few).format(training.epochs)}: {more}")
    if -(-num_batches // training.accumulate) == 1 and training.epochs > 1:
        doubts.append(
            f"an epoch is a single update, because {len(dataset):,} images fit into {training.accumulate} x "
            f"{training.batch_size} (accumulate x batch size): lower --batch-size or --train.accumulate"
        )
    if training.frozen_epochs and not (config.pretrained or config.student_checkpoint or config.student_options):
        doubts.append(
            f"the body of {config.student} is fixed for {training.frozen_epochs} epochs, and its weights may be "
            "random: give --pretrained or --student-checkpoint FILE"
        )
    if config.task_loss_weight and (lone := _only_class(dataset)) is not None:
        more = ", or train without labels (--task-loss-weight 0)" if config.has_teacher else ""
        data = name_data(config.data)
        doubts.append(
            f"every label is {lone}, so the loss on labels teaches nothing: if {data} holds one class of "
            f"several, give the folder above it{more}"
        )
    return doubts


def _only_class(dataset: ReplayedDataset) -> str | None:
    """The class that all labelled images have, if it is one alone and known before they are loaded."""
    if dataset.is_multi_label or dataset.targets is None or dataset.is_unlabelled:
        return None
    known = dataset.targets[dataset.targets >= 0]
    if known.min() != known.max():
        return None
    return repr(dataset.class_names[known[0]]) if dataset.class_names else str(known[0])


def _describe_teacher(config: DistillConfig, task: TrainingTask, cache: CacheReader | None, precision: str) -> str:
    if cache is not None:
        caches = f"cache {config.caches[0]}" if len(config.caches) == 1 else f"caches {', '.join(config.caches)}"
        live = live_part_of(cache)
        also = "" if live is None else f", and {live.name} live in {precision}"
        return f"{cache.teacher.get('name')}, from the {caches}{also}"
    if config.is_ema_teacher:
        return "the student's moving average"
    teacher = live_teacher_of(task)
    return "none, labels alone" if teacher is None else f"{describe_teacher(teacher)}, live in {precision}"


def _describe_images(dataset: ReplayedDataset, num_rows: int, cache: CacheReader | None, num_classes: int) -> str:
    unlabelled = count_unlabelled(dataset)
    missing = "" if not unlabelled else f", {'all' if dataset.is_unlabelled else f'{unlabelled:,}'} without a label"
    if cache is not None and num_rows < cache.num_rows:
        return f"{num_rows:,} of {cache.num_rows:,} cached images, {num_classes} classes{missing}"
    part = f" of {len(dataset):,} images, {num_classes}" if num_rows < len(dataset) else f" of {num_classes}"
    return f"{num_rows:,}{part} classes{missing}"


def _describe_loss(config: DistillConfig, dataset: ReplayedDataset) -> str:
    labels = "no labels" if dataset.is_unlabelled else f"{config.task_loss_weight:g} x labels"
    if not config.has_teacher:
        return "labels"
    names = [config.distill_loss] if isinstance(config.distill_loss, str) else list(config.distill_loss)
    return f"{labels} + {config.distill_loss_weight:g} x {', '.join(names)} (task {config.task_kind})"
