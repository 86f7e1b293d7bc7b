"""TrainingTask: a forward pass with its loss, as a module that returns named tensors.

The protocol around it (compile, EMA, checkpoint state, evaluator, clipping) is that of timm.task in timm 1.0.31, so
that timm's CheckpointSaver, resume_task_checkpoint and create_optimizer_v2 take a kdkit task as they take their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from timm.utils import ModelEmaV3, unwrap_model
from timm.utils.model import get_state_dict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import Self

from kdkit.errors import CheckpointError
from kdkit.teachers import Teacher


class TrainingTask(nn.Module):
    """Base of all tasks: subclasses set `trainable_module` and define `forward`.

    `trainable_module` holds everything that learns (the student; projections, learnt temperatures where a task has
    them) and nothing else; it alone is wrapped by `prepare_distributed`. `forward(input, target)` returns a dict with
    'loss' (required), 'output' (recommended) and further scalars for the log.

    Args:
        device: where the task's own tensors live; the CPU by default.
        dtype: their floating dtype; torch's default dtype by default.
        verbose: taken as timm's tasks take it; kdkit's log nothing by themselves.
    """

    trainable_module: nn.Module
    trainable_module_ema: ModelEmaV3 | None
    eval_model: nn.Module | None
    eval_model_ema: nn.Module | None

    def __init__(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        # An empty buffer takes part in every conversion, of this module or of a parent, so it always knows where
        # and what the task is. Not persistent: it is no state.
        anchor = torch.empty(0, device=torch.device(device or "cpu"), dtype=dtype or torch.get_default_dtype())
        self.register_buffer("_anchor", anchor, persistent=False)
        self.verbose = verbose
        self.teacher: Teacher | None = None  # the live teacher, where the task has one
        self.is_own_teacher = False  # whether the student's moving average teaches
        self.distill_loss_weight: float | None = None  # None where the task has no distillation loss
        self.trainable_module_ema = None
        self.eval_model = None
        self.eval_model_ema = None

    _anchor: Tensor

    @property
    def device(self) -> torch.device:
        """Where the task is, whatever moved it there."""
        return self._anchor.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the task, whatever converted it."""
        return self._anchor.dtype

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One step's forward pass and loss.

        Args:
            input: images [B, 3, H, W].
            target: class indices [B], or soft labels [B, C].

        Returns:
            'loss', a scalar to call backward on; 'output', the student's logits [B, C]; further scalars for the log.
        """
        raise NotImplementedError

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp_kwargs: Any) -> Self:
        """Wraps the trainable module alone in DistributedDataParallel; call after `compile`, before the loop.

        Args:
            device_ids: as DistributedDataParallel takes them, e.g. [local_rank]; None on the CPU.
            ddp_kwargs: further arguments of DistributedDataParallel.
        """
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(  # type: ignore[override]  # timm's protocol: returns the module to evaluate with
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module:
        """Compiles what trains and what is evaluated; call before `prepare_distributed`. Returns the eval model."""
        student = self.get_eval_model()
        compiled = _compiled(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        same = student is None or student is self.trainable_module
        self.eval_model = compiled if same else _compiled(student, backend=backend, mode=mode, **compile_kwargs)
        self.trainable_module = compiled
        return self.eval_model

    def compile_ema(
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module | None:
        """Compiles the EMA's eval model, if there is an EMA, and returns it."""
        ema = self.get_eval_model(ema=True)
        if ema is not None:
            self.eval_model_ema = _compiled(ema, backend=backend, mode=mode, **compile_kwargs)
        return self.eval_model_ema

    def get_trainable_module(self, ema: bool = False) -> nn.Module | None:
        """The module that owns what trains, or its EMA (None before `setup_ema`)."""
        return self.trainable_module_ema if ema else self.trainable_module

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The student (or its EMA) to evaluate and to export, compiled where it was compiled."""
        if module is not None:
            return module
        compiled = self.eval_model_ema if ema else self.eval_model
        return compiled if compiled is not None else self.get_trainable_module(ema=ema)

    def setup_ema(
        self,
        decay: float = 0.9999,
        use_warmup: bool = False,
        device: torch.device | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        """Makes timm's ModelEmaV3 of the trainable module."""
        ema: nn.Module = ModelEmaV3(
            unwrap_model(self.trainable_module), decay=decay, use_warmup=use_warmup, device=device, **kwargs
        )
        self.trainable_module_ema = ema
        return ema

    def has_ema(self) -> bool:
        """Whether `setup_ema` was called."""
        return self.trainable_module_ema is not None

    def update_ema(self, step: int | None = None) -> None:
        """Moves the EMA towards the trainable module; nothing without an EMA."""
        if self.trainable_module_ema is not None:
            self.trainable_module_ema.update(unwrap_model(self.trainable_module), step=step)

    def get_clip_parameters(self, exclude_head: bool = False) -> Iterable[nn.Parameter]:
        """The parameters whose gradients are clipped; without the last two (the head's) for AGC, as timm does."""
        parameters = list(self.trainable_module.parameters())
        return parameters[:-2] if exclude_head else parameters

    def no_sync(self) -> AbstractContextManager[Any]:
        """DistributedDataParallel's no_sync for gradient accumulation; without it, a context that does nothing."""
        module = self.trainable_module
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """What trains beside the student; empty where nothing does."""
        return {}

    def load_task_state(
        self,
        state: Mapping[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Inverse of `get_task_state`."""
        if state and strict:
            raise CheckpointError(
                f"the checkpoint holds task state {sorted(state)}, but {type(self).__name__} has none: "
                "resume with the task that wrote it, or pass strict=False"
            )

    def get_checkpoint_state(
        self, ema: bool = False, unwrap_fn: Callable[[nn.Module], nn.Module] = unwrap_model
    ) -> dict[str, Any]:
        """What a checkpoint keeps of this task: the student under timm's keys, and the task state if there is any."""
        model = self.get_eval_model(ema=ema)
        if model is None:
            return {}
        suffix = "_ema" if ema else ""
        state: dict[str, Any] = {f"state_dict{suffix}": get_state_dict(model, unwrap_fn)}
        if task_state := self.get_task_state(ema=ema):
            state[f"task_state{suffix}"] = task_state
        return state

    def load_checkpoint_state(
        self,
        state_dict: Mapping[str, Any],
        task_state: Mapping[str, Any] | None = None,
        ema: bool = False,
        strict: bool = True,
    ) -> None:
        """Inverse of `get_checkpoint_state`.

        Raises:
            CheckpointError: EMA weights are to be loaded before `setup_ema`.
        """
        model = self.get_eval_model(ema=ema)
        if model is None:
            raise CheckpointError("the checkpoint's EMA weights need task.setup_ema() first")
        unwrap_model(model).load_state_dict(state_dict, strict=strict)
        self.load_task_state(task_state, strict=strict, ema=ema)

    def create_evaluator(self, **kwargs: Any) -> Any:
        """A fresh timm ClassificationEvaluator (loss, top-1 and top-5 in percent), on the task's device by default."""
        from timm.task.evaluator import ClassificationEvaluator

        return ClassificationEvaluator(**{"device": self.device, **kwargs})


def _compiled(module: nn.Module | None, **options: Any) -> nn.Module:
    """torch.compile of a module, which is a module."""
    return cast(nn.Module, torch.compile(module, **options))
