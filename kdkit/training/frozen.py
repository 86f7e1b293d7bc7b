"""Epochs in which the student's head learns alone, while its body stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn
from typing_extensions import Self

from kdkit.errors import ConfigError
from kdkit.tasks import TrainingTask
from kdkit.teachers.model_config import find_classifiers
from kdkit.training.setup import wrap_again


class FrozenBody:
    """Keeps the body of a student fixed in the first epochs: its weights, and its norms' statistics; a context.

    The head is the classifier that the model's `pretrained_cfg` names, as timm's and torchvision's models do, else the
    one of its `get_classifier`. Other parts of the task, such as the projections of losses on features, learn too.

    Args:
        task: its student, in place; created before it is wrapped or compiled.
        epochs: number of epochs in which the head learns alone; 0 changes nothing.
        device: where the student is.

    Raises:
        ConfigError: the student does not say which part of it is the head.
    """

    def __init__(self, task: TrainingTask, epochs: int, device: torch.device) -> None:
        self._task, self._epochs, self._device = task, epochs, device
        self._parameters: list[nn.Parameter] = []
        self._norms: list[nn.Module] = []
        self._is_frozen = False
        if not epochs:
            return
        student: Any = unwrap_model(task.get_eval_model())
        heads = _find_heads(student)
        for module in student.modules():
            if not any(module is head for head in heads) and getattr(module, "running_mean", None) is not None:
                self._norms.append(module)
        learning = {id(parameter) for head in heads for parameter in head.parameters()}
        self._parameters = [p for p in student.parameters() if p.requires_grad and id(p) not in learning]

    def begin(self, epoch: int) -> None:
        """Sets what learns in an epoch, counted from 0; call it after `task.train()`."""
        freezes = epoch < self._epochs
        if freezes != self._is_frozen:
            for parameter in self._parameters:
                parameter.requires_grad_(not freezes)
            wrap_again(self._task, self._device)  # DistributedDataParallel waits for the gradients that it was made for
            self._is_frozen = freezes
        for norm in self._norms if freezes else ():
            norm.eval()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *more: object) -> None:
        """Lets the body learn again, however the run ended; after an error without the other ranks."""
        if error is None:
            self.begin(self._epochs)
        elif self._is_frozen:
            for parameter in self._parameters:
                parameter.requires_grad_(True)


def _find_heads(student: Any) -> list[nn.Module]:
    """The classifiers of a model: one, or two of a distilled transformer."""
    found = find_classifiers(student)
    if not any(parameter.requires_grad for head in found for parameter in head.parameters()):
        raise ConfigError(
            f"frozen_epochs needs a head that learns, and {type(student).__name__} names none: set its pretrained_cfg "
            '= {"classifier": NAME}, the name of its last layer, or leave frozen_epochs out'
        )
    return found
