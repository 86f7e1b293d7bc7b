"""One training step: the teacher's output, the task's loss, its gradients, and the update of the weights.

The loss itself, the weighted sum of its terms, is computed by the task: see kdkit/tasks/distillation.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from timm.utils import dispatch_clip_grad, unwrap_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdkit.errors import ConfigError
from kdkit.runtime import distributed
from kdkit.runtime.model_errors import model_errors
from kdkit.tasks import TrainingTask, gradient_norms
from kdkit.teachers.model_config import model_config
from kdkit.training.config import TrainConfig
from kdkit.training.optimizer import is_second_order, optimizer_errors, schedule_errors
from kdkit.training.setup import autocast_dtype, to_memory_format, uses_channels_last
from kdkit.training.state import RunState
from kdkit.types import Batch, LiveSource, Normalization, TeacherOutput, TeacherSource


class TrainingStep:
    """Computes gradients batch by batch, and updates the weights at the end of each accumulation group.

    Args:
        state: task, optimiser, schedule and loss scaler.
        config: accumulation, autocast and clipping.
        source: the teacher outputs of each batch; if None, the task runs its own teacher, if it has one.
    """

    def __init__(self, state: RunState, config: TrainConfig, source: TeacherSource | None) -> None:
        self._state, self._config, self._source = state, config, source
        self._amp = autocast_dtype(config)
        self._channels_last = uses_channels_last(state.task.get_trainable_module(), config, state.device)
        self._is_second_order = is_second_order(state.optimizer)

    def backward(
        self, batch: Batch, *, group_size: int, is_update: bool, log_gradients: bool
    ) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
        """Accumulates the gradients of loss / group_size.

        Args:
            batch: the images of this rank.
            group_size: batches whose gradients are averaged for one update.
            is_update: whether the batch is the last of its group, so that ranks synchronise their gradients.
            log_gradients: whether the norms of the terms' gradients are computed too.

        Returns:
            The task's result, and the norms [] by name.
        """
        task = self._state.task
        batch = to_memory_format(batch, channels_last=self._channels_last)
        synced = nullcontext() if is_update else task.no_sync()
        with synced, step_errors(task, batch, self._amp), _differentiable(self._is_second_order):
            teacher_output = None if self._source is None else self._source(batch)
            result = forward(task, batch, teacher_output, self._amp)
            if not result["loss"].requires_grad:
                raise ConfigError(
                    "no weight that learns takes part in the loss: with frozen_epochs, give the loss on labels or on "
                    "logits a weight"
                )
            norms = gradient_norms(task, result) if log_gradients else {}
            self._differentiate(self._state.scaler.scale(result["loss"] / group_size))
        return result, norms

    def _differentiate(self, loss: Tensor) -> None:
        """Adds the gradients of a loss []; a second-order optimiser needs their graph too."""
        if not self._is_second_order:
            loss.backward()
            return
        with warnings.catch_warnings():
            # The cycle that torch warns of ends with the gradients, when the update sets them to None.
            warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
            loss.backward(create_graph=True)

    def update(self) -> None:
        """Clips the gradients, updates the weights and their moving average, and sets the next learning rate."""
        state, task, clip = self._state, self._state.task, self._config.clip_grad
        if clip is not None:
            state.scaler.unscale_(state.optimizer)
            parameters = task.get_clip_parameters(exclude_head=self._config.clip_mode == "agc")
            dispatch_clip_grad(parameters, clip, mode=self._config.clip_mode)
        with optimizer_errors(self._config):
            state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        state.position.update += 1
        task.update_ema(step=state.position.update)
        ema = task.get_trainable_module(ema=True)
        if ema is not None and task.is_ema_teacher:  # else each rank's teacher has the statistics of its own images
            distributed.broadcast_buffers(ema)
        if state.scheduler is not None:
            with schedule_errors(self._config):
                state.scheduler.step_update(state.position.update)


def _differentiable(is_needed: bool) -> AbstractContextManager[None]:
    """Within the context, attention has second derivatives, if they are needed: its fused kernels have none."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if is_needed else nullcontext()
    return context


def step_errors(task: TrainingTask, batch: Batch, amp: torch.dtype | None) -> AbstractContextManager[None]:
    """Within the context, what the student raises on a batch, forward or backward, is a one-line error."""
    student = task.get_eval_model()
    name = model_config(student).get("architecture") if student is not None else None
    return model_errors(f"the student {name or type(unwrap_model(student)).__name__!r}", batch.input, amp)


def forward(
    task: TrainingTask, batch: Batch, teacher_output: TeacherOutput | None, amp: torch.dtype | None
) -> Mapping[str, Tensor]:
    """The task's result on a batch under autocast to `amp`; without an output, the task runs its own teacher."""
    arguments = () if teacher_output is None else (teacher_output,)
    rows = {"row": batch.row} if getattr(task, "needs_rows", False) else {}
    with torch.autocast(batch.input.device.type, dtype=amp, enabled=amp is not None):
        return cast(Mapping[str, Tensor], task(batch.input, batch.target, *arguments, **rows))


def choose_source(
    task: TrainingTask, source: TeacherSource | None, normalization: Normalization
) -> TeacherSource | None:
    """The source of teacher outputs: `source`, else the task's own teacher, which the loop runs on the whole batch.

    With an EMA teacher, the task runs it itself. A live teacher takes images in `normalization`, the student's.
    """
    if source is None:
        source = task.live_teacher  # run by the loop, it also takes the batch's own view for the teacher
    return source.for_input(normalization) if isinstance(source, LiveSource) else source
