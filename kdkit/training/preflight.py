"""A check before the first step: does the teacher know these classes, and does a step fit into memory?

Dimensions: B batch, C classes.
"""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor

from kdkit.data import ReplayLoader
from kdkit.data.factory import check_class_order
from kdkit.errors import ClassMismatchError
from kdkit.tasks import TrainingTask
from kdkit.teachers import Teacher
from kdkit.teachers.matching import tell_crossed_map
from kdkit.training.config import TrainConfig
from kdkit.training.setup import autocast_dtype
from kdkit.training.step import forward, step_errors
from kdkit.types import Batch, TeacherOutput, TeacherSource

IMAGES = 256
"""Minimum number of labelled images that the teacher's top-1 is measured on; rounded up to whole batches."""
_CHANCES = 3.0  # a teacher that knows the classes is right far more often than by chance, also on hard crops
_ENOUGH = 16  # labelled images below which even a good teacher may miss them all
_UNBALANCED = 20.0  # published recipes begin with losses within one order of magnitude of the loss on labels
_KIBIBYTE = 1024


@dataclass(frozen=True)
class PreflightReport:
    """The measurements of the check before the first step."""

    teacher_top1: float | None
    """Top-1 of the teacher on the first batches of training views, percent; None without labels or a teacher."""
    images: int
    """Labelled images that the top-1 was measured on."""
    card_top1: float | None
    """Top-1 that the teacher's card cites, on ImageNet's validation images, percent; None without a card."""
    step_bytes: int
    """Peak memory of one training step, bytes: allocated on the CUDA device, or else resident in the process; the
    optimiser's state comes on top."""
    num_classes: int | None
    """Classes C that teacher and student agree on; None without a teacher."""
    label_loss: float | None = None
    """The loss on labels of that step, times its weight; None without such a loss."""
    distill_loss: float | None = None
    """The distillation losses of that step, times their weights; None without a teacher."""
    is_on_cuda: bool = False
    """Whether the step ran on a CUDA device."""

    def __str__(self) -> str:
        card = "" if self.card_top1 is None else f" (its card cites {self.card_top1:.1f} % on ImageNet)"
        known = self.num_classes is not None and self.teacher_top1 is not None
        accuracy = f"teacher top-1 {self.teacher_top1:.1f} % on {self.images} training views{card}, " if known else ""
        low = "; the teacher is hardly better than chance: are these its classes, its normalisation and its image size?"
        holder = "a step takes" if self.is_on_cuda else "with a step, the process holds"
        step = f"{holder} {self.step_bytes / 2**20:,.0f} MiB of memory"
        return f"before the first step: {accuracy}{step}{low if self.is_suspicious else ''}{self._balance}"

    @property
    def _balance(self) -> str:
        """What to do about a distillation loss that leaves the labels no part in the gradient."""
        if not self.label_loss or self.distill_loss is None or self.distill_loss < _UNBALANCED * self.label_loss:
            return ""
        times = self.distill_loss / self.label_loss
        return (
            f"; the distillation loss begins at {self.distill_loss:.3g}, {times:.0f} times the loss on labels: with "
            f"{1 / times:.2g} of its weight (--distill-loss-weight) both begin alike"
        )

    @property
    def is_suspicious(self) -> bool:
        """Whether the teacher's top-1 is so near to chance that its classes are probably different ones."""
        if self.teacher_top1 is None or not self.num_classes or self.images < _ENOUGH:
            return False
        return self.teacher_top1 < 100 * _CHANCES / (self.num_classes + _CHANCES)


def preflight(
    task: TrainingTask,
    loader: ReplayLoader,
    source: TeacherSource | None,
    config: TrainConfig,
    *,
    card_top1: float | None = None,
) -> PreflightReport:
    """Runs the teacher on the first batches, and one training step whose effects are undone.

    Args:
        task: what a step computes, not yet distributed.
        loader: the training loader; another loader, in this process, reads the same first batches.
        source: the teacher or cache; None if the task has no teacher.
        config: the training configuration.
        card_top1: top-1 that the teacher's card cites, percent.

    Raises:
        ClassMismatchError: teacher and student have different numbers of classes, or a live teacher that knows the
            names of its classes has others than the data, or another order.
    """
    if any(term.compares_logits for term in getattr(task, "terms", ())):
        check_class_order(source, loader.dataset)
        if isinstance(source, Teacher) and loader.dataset.class_names is not None:
            tell_crossed_map(source, loader.dataset.class_names)
    amp = autocast_dtype(config)
    sampler = copy.copy(loader.sampler)
    sampler.set_epoch(0)
    first_batches = ReplayLoader(loader.dataset, sampler, loader.normalization, device=loader.device)
    hits = labelled = 0
    step_bytes, num_classes = 0, None
    label_loss = distill_loss = None
    # Not `first_batches` itself, which on a GPU loads one batch more than it yields.
    for number, batch in enumerate(map(first_batches.to_batch, first_batches.pixel_batches())):
        teacher_output = None if source is None else source(batch)
        if number == 0:
            step_bytes, result = _step(task, batch, teacher_output, amp)
            num_classes = _compare_classes(result.get("output"), teacher_output)
            _check_width(task, result.get("output"))
            label_loss = _loss_of(result, "weighted_task_loss")
            distill_loss = _loss_of(result, "weighted_kd_loss")
        if teacher_output is None or teacher_output.logits is None or batch.target.ndim != 1:
            break
        known = batch.target >= 0
        hits += int((teacher_output.logits.argmax(dim=1) == batch.target)[known].sum())
        labelled += int(known.sum())
        if (number + 1) * len(batch.target) >= IMAGES:
            break
    top1 = 100 * hits / labelled if labelled else None
    is_on_cuda = loader.device.type == "cuda"
    return PreflightReport(
        top1, labelled, card_top1, step_bytes, num_classes, label_loss, distill_loss, is_on_cuda=is_on_cuda
    )


def _loss_of(result: Mapping[str, Tensor], name: str) -> float | None:
    return result[name].detach().item() if name in result else None


def time_step(task: TrainingTask, batch: Batch, source: TeacherSource | None, config: TrainConfig) -> float:
    """Seconds of one training step without its effects, with the teacher's output; the shorter of two."""
    seconds, device = [], batch.input.device
    for _ in range(2):
        begun = time.perf_counter()
        _step(task, batch, None if source is None else source(batch), autocast_dtype(config))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _step(
    task: TrainingTask, batch: Batch, teacher_output: TeacherOutput | None, amp: torch.dtype | None
) -> tuple[int, Mapping[str, Tensor]]:
    """Bytes of one forward and backward pass, and what the task returned."""
    device = batch.input.device
    with _undone(task, device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        task.train()
        with step_errors(task, batch, amp):
            result = forward(task, batch, teacher_output, amp)
            result["loss"].backward()
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device), result
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
        return peak * (1 if sys.platform == "darwin" else _KIBIBYTE), result


@contextmanager
def _undone(task: TrainingTask, device: torch.device) -> Iterator[None]:
    """Restores at exit what a step changes: buffers (running statistics), gradients, random generators."""
    module: Any = task.get_trainable_module()
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    for buffer, before in buffers:
        buffer.copy_(before)
    module.zero_grad(set_to_none=True)


def _check_width(task: TrainingTask, output: Tensor | None) -> None:
    """Raises ClassMismatchError unless the student returns as many logits as it reports classes."""
    reported = getattr(unwrap_model(task.get_eval_model()), "num_classes", None)
    if output is not None and isinstance(reported, int) and output.shape[-1] != reported:
        raise ClassMismatchError(
            f"the student returns {output.shape[-1]} logits, and is to have {reported} classes: use num_classes where "
            "it is made"
        )


def _compare_classes(output: Tensor | None, teacher_output: TeacherOutput | None) -> int | None:
    if output is None or teacher_output is None or teacher_output.logits is None:
        return None
    student, teacher = output.shape[-1], teacher_output.logits.shape[-1]
    if student != teacher:
        raise ClassMismatchError(
            f"the teacher has {teacher} classes, the student {student}: a student learns the teacher's classes, so "
            "both need those of the data"
        )
    return teacher
