"""The base of kdkit's own tasks: a student that trains, and a criterion on labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import Self

from kdkit.errors import ConfigError
from kdkit.runtime.model_errors import logits_of
from kdkit.tasks.criterion import LabelledCrossEntropy
from kdkit.tasks.task import TrainingTask

Criterion = Callable[[Tensor, Tensor], Tensor]
"""A loss on labels: logits [B, C] and target [B] or [B, C] -> a scalar []."""


class StudentTask(TrainingTask):
    """A task that trains a student model; subclasses define `forward`, and may wrap `trainable_module`.

    Args:
        student_model: the model to train.
        criterion: loss on labels; LabelledCrossEntropy by default. A module with buffers, such as class weights,
            follows the task's device, and is kept in at least float32, because it receives logits in float32. It
            receives only the labelled samples (-1, or a soft label of zeros, means no label), so the host reads the
            targets of each step from the device; one with an attribute `takes_unlabelled` that is true receives all
            samples, as kdkit's own do, and needs no such read.
        device, dtype, verbose: as for TrainingTask.

    Raises:
        ConfigError: the student is not an nn.Module (e.g. a timm name), or the criterion cannot be called.
    """

    def __init__(
        self,
        student_model: nn.Module,
        criterion: Criterion | None = None,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        if not isinstance(student_model, nn.Module):
            raise ConfigError(f"a student is an nn.Module, got {student_model!r}: timm.create_model makes one")
        if criterion is not None and not callable(criterion):
            raise ConfigError(f"a criterion is a function of (logits, target), got {type(criterion).__name__}")
        self.trainable_module = student_model
        self.criterion = criterion if criterion is not None else LabelledCrossEntropy()
        if isinstance(self.criterion, nn.Module):
            self.criterion.to(self.device)

    trainable_module: nn.Module

    def _run_student(self, input: Tensor) -> Tensor:
        """The student's logits [B, C] for images [B, 3, H, W]."""
        return logits_of(self.trainable_module(input), "the student")

    def _label_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The criterion [] of logits [B, C] over the labelled samples; exactly 0 if no sample is labelled."""
        with torch.autocast(logits.device.type, enabled=False):
            return self._criterion_of_labelled(logits, target)

    def _criterion_of_labelled(self, logits: Tensor, target: Tensor) -> Tensor:
        is_index = target.ndim == 1 and not target.is_floating_point()
        if getattr(self.criterion, "takes_unlabelled", False) or not (is_index or target.ndim == 2):
            return self.criterion(logits, target)
        labelled = target >= 0 if is_index else target.sum(dim=1) > 0
        if bool(labelled.all()):
            return self.criterion(logits, target)
        if not bool(labelled.any()):
            return (logits * 0).sum()  # with a gradient, which DistributedDataParallel waits for
        return self.criterion(logits[labelled], target[labelled])

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp_kwargs: Any) -> Self:
        """Wraps only the trainable module in DistributedDataParallel; call it after `compile`, before the loop.

        Args:
            device_ids: as DistributedDataParallel takes them, e.g. [local_rank]; None on the CPU.
            ddp_kwargs: further arguments of DistributedDataParallel.
        """
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def __repr__(self) -> str:
        """One line: what is trained from what, where."""
        student = type(unwrap_model(self.get_eval_model())).__name__
        learning = sum(p.numel() for p in self.trainable_module.parameters() if p.requires_grad) / 1e6
        where = f"{str(self.dtype).removeprefix('torch.')} on {self.device}"
        parts = [f"student={student}", *self._describe(), f"{learning:.2f} M trainable parameters", where]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _describe(self) -> list[str]:
        """The parts of `__repr__` other than the student."""
        return []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        criterion = self._modules.pop("criterion", None)
        try:
            super()._apply(fn, recurse)
        finally:
            if criterion is not None:
                self._modules["criterion"] = criterion
        if criterion is not None:
            criterion._apply(lambda tensor: _at_least_float32(tensor, fn(tensor)), recurse)
        return self


def _at_least_float32(before: Tensor, after: Tensor) -> Tensor:
    """A converted tensor; in float32, from the values before, where the conversion left it fewer bits."""
    is_half = after.is_floating_point() and torch.finfo(after.dtype).bits < 32
    return before.to(after.device, torch.float32) if is_half else after
