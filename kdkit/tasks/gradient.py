"""Gradient norms of the terms of a loss, by which their weights are tuned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from kdkit.errors import ConfigError
from kdkit.tasks.task import TrainingTask
from kdkit.teachers.model_config import find_classifiers

_WEIGHTED = "weighted_"


def gradient_norms(
    task: TrainingTask, result: Mapping[str, Tensor], parameters: Iterable[nn.Parameter] | None = None
) -> dict[str, Tensor]:
    """Returns the L2 norm of each weighted term's gradient; call it between a task's forward and backward pass.

    Each term costs one backward pass through the graph; the graph and every .grad stay as they were. Under
    DistributedDataParallel the norms are those of this rank's images. A student that inductor compiled frees its graph
    after one pass, so that norms are not available for it.

    Args:
        task: the task that computed `result`.
        result: what `task(...)` returned.
        parameters: the parameters of the gradients; those of the student's classifier by default. A term that does not
            depend on them, as one on features does not depend on the classifier, has norm 0: give a layer that all
            terms share.

    Returns:
        'gradient_<term>' [] for each weighted term, and 'gradient_ratio' [], the norm of kd_loss over that of
        task_loss; infinite if the latter is 0.

    Raises:
        ConfigError: the result is not of a distillation task, the student has no classifier, or its graph is freed.
    """
    wanted = list(_classifier(task) if parameters is None else parameters)
    norms = {
        f"gradient_{key.removeprefix(_WEIGHTED)}": _norm(value, wanted)
        for key, value in result.items()
        if key.startswith(_WEIGHTED)
    }
    if not norms:
        raise ConfigError(
            f"the result holds no weighted term, only {', '.join(result)}: pass that of a distillation task"
        )
    return norms | {"gradient_ratio": norms["gradient_kd_loss"] / norms["gradient_task_loss"]}


def _norm(term: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    if not term.requires_grad:
        return torch.zeros((), device=term.device)
    try:
        found: Sequence[Any] = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "donated buffers" not in str(error):
            raise
        raise ConfigError(
            "a compiled student frees its graph after one backward pass: take gradient norms of one that is not"
        ) from error
    reached = [torch.linalg.vector_norm(gradient.float()) for gradient in found if gradient is not None]
    return torch.linalg.vector_norm(torch.stack(reached)) if reached else torch.zeros((), device=term.device)


def _classifier(task: TrainingTask) -> Iterable[nn.Parameter]:
    """The parameters of the student's classifier, or classifiers."""
    student: Any = unwrap_model(task.get_eval_model())
    parameters = [p for head in find_classifiers(student) for p in head.parameters()]
    if not parameters:
        raise ConfigError("the student names no classifier: leave out log_gradients, or in Python pass parameters=...")
    return parameters
