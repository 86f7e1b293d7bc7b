"""TrainingTask: a forward pass with its loss, as a module that returns named tensors.

The protocol around it (compile, EMA, checkpoint state, evaluator, clipping) is that of timm.task in timm 1.0.31, so
that timm's CheckpointSaver, resume_task_checkpoint and create_optimizer_v2 accept a kdkit task as they accept timm's
own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, cast

import torch
from timm.utils import ModelEmaV3, unwrap_model
from timm.utils.model import get_state_dict
from torch import Tensor, nn
from typing_extensions import Self

from kdkit.errors import CheckpointError
from kdkit.tasks.placement import PlacedModule
from kdkit.types import TeacherSource


class TrainingTask(PlacedModule):
    """Base of all tasks, and of your own: a subclass defines `forward`, and may set `trainable_module`.

    `forward(input, target)` returns a dict with 'loss' (required), 'output' (recommended) and further scalars for the
    log. `trainable_module` holds all that is trained (the student; projections if a task has them) and nothing else.
    A subclass that sets none is trained as a whole, as in timm.task.

    Args:
        device: device of the task's own tensors: a torch.device, a name such as "meta", or the index of an accelerator.
            The CPU by default. The modules that a subclass is given stay where they are.
        dtype: floating dtype of the task's own tensors; torch's default dtype by default.
        verbose: accepted as timm's tasks accept it. kdkit's tasks log nothing by themselves.

    Raises:
        ConfigError: this machine has no such device, or the dtype is not a floating dtype.
    """

    trainable_module_ema: ModelEmaV3 | None
    eval_model: nn.Module | None
    eval_model_ema: nn.Module | None

    distill_loss_weight: float | None = None
    """Weight of the loss that comes from a teacher, which a warm-up may change; None if a task has no such loss."""

    is_multi_label: ClassVar[bool] = False
    """Whether targets are vectors [B, C] of 0 and 1, and logits one distribution per class."""

    is_ema_teacher: bool = False
    """Whether the teacher is the moving average of the student itself."""

    needs_rows: bool = False
    """Whether `forward` takes `row`, the number of each sample in the dataset."""

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device, dtype)
        self.verbose = verbose
        self.trainable_module_ema = None
        self.eval_model = None
        self.eval_model_ema = None

    @property
    def live_teacher(self) -> TeacherSource | None:
        """The teacher that a loop runs on each batch for `forward`'s teacher_output; None if there is none."""
        return None

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Computes one step's forward pass and loss.

        Args:
            input: images [B, 3, H, W].
            target: class indices [B], or soft labels [B, C].

        Returns:
            'loss', a scalar to call backward on; 'output', the student's logits [B, C]; further scalars for the log.
        """
        raise NotImplementedError

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp_kwargs: Any) -> Self:
        """Does nothing and returns the task; a task that trains on several ranks overrides it.

        Args:
            device_ids: as DistributedDataParallel takes them, e.g. [local_rank]; None on the CPU.
            ddp_kwargs: further arguments of DistributedDataParallel.
        """
        return self

    def compile(  # type: ignore[override]  # timm's protocol: returns the module to evaluate with
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module | None:
        """Compiles the trainable module and the eval model, and returns the latter; call it before
        `prepare_distributed`.

        A task without `trainable_module` is compiled in place.
        """
        student, trainable = self.get_eval_model(), self.get_trainable_module()
        if trainable is self:
            super().compile(backend=backend, mode=mode, **compile_kwargs)
            return student
        compiled = _compiled(trainable, backend=backend, mode=mode, **compile_kwargs)
        same = student is None or student is trainable
        self.eval_model = compiled if same else _compiled(student, backend=backend, mode=mode, **compile_kwargs)
        self.trainable_module = compiled
        return self.eval_model

    def compile_ema(
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module | None:
        """Compiles the EMA's eval model, if there is an EMA, and returns it."""
        ema = self.get_eval_model(ema=True)
        if ema is not None:
            self._keep("eval_model_ema", _compiled(ema, backend=backend, mode=mode, **compile_kwargs))
        return self.eval_model_ema

    def get_trainable_module(self, ema: bool = False) -> nn.Module | None:
        """Returns the module that trains, the task itself by default, or its EMA (None before `setup_ema`)."""
        if ema:
            return self.trainable_module_ema
        found: nn.Module = getattr(self, "trainable_module", self)
        return found

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """Returns the student (or its EMA) to evaluate and to export, compiled where it was compiled."""
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
        self.trainable_module_ema = None  # or a second average would hold a copy of the first
        ema: nn.Module = ModelEmaV3(self._trained(), decay=decay, use_warmup=use_warmup, device=device, **kwargs)
        self._keep("trainable_module_ema", ema)
        return ema

    def has_ema(self) -> bool:
        """Returns whether `setup_ema` was called."""
        return self.trainable_module_ema is not None

    def update_ema(self, step: int | None = None) -> None:
        """Moves the EMA towards the trainable module; nothing without an EMA."""
        if self.trainable_module_ema is not None:
            self.trainable_module_ema.update(self._trained(), step=step)

    def get_clip_parameters(self, exclude_head: bool = False) -> Iterable[nn.Parameter]:
        """Returns the parameters to clip the gradients of; for AGC without the last two (the head's), as timm does."""
        parameters = list(self._trained().parameters())
        return parameters[:-2] if exclude_head else parameters

    def no_sync(self) -> AbstractContextManager[Any]:
        """DistributedDataParallel's no_sync for gradient accumulation; without it, a context that does nothing."""
        module: Any = self.get_trainable_module()
        return module.no_sync() if module is not self and hasattr(module, "no_sync") else nullcontext()

    def _trained(self) -> nn.Module:
        """The trainable module without its wrappers."""
        module: nn.Module = unwrap_model(self.get_trainable_module())
        return module

    def _keep(self, name: str, module: nn.Module) -> None:
        """Sets an attribute; not as a child if the task trains as a whole, because its EMA must not train with it."""
        if self.get_trainable_module() is self:
            object.__setattr__(self, name, module)
        else:
            setattr(self, name, module)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in ("trainable_module_ema", "eval_model_ema"):
            if isinstance(hidden := vars(self).get(name), nn.Module):
                hidden._apply(fn)
        return self

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Returns the state of the trained parts other than the student; empty if there are none."""
        return {}

    def load_task_state(
        self,
        state: Mapping[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Loads what `get_task_state` returned."""
        if state and strict:
            raise CheckpointError(
                f"the checkpoint holds task state {sorted(state)}, but {type(self).__name__} has none: "
                "resume with the task that wrote it, or pass strict=False"
            )

    def get_checkpoint_state(
        self, ema: bool = False, unwrap_fn: Callable[[nn.Module], nn.Module] = unwrap_model
    ) -> dict[str, Any]:
        """Returns what a checkpoint keeps: the student under timm's keys, and the task state if there is any."""
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
        """Loads what `get_checkpoint_state` returned.

        Raises:
            CheckpointError: EMA weights are loaded before `setup_ema`.
        """
        model = self.get_eval_model(ema=ema)
        if model is None:
            raise CheckpointError("the checkpoint's EMA weights need task.setup_ema() first")
        unwrap_model(model).load_state_dict(state_dict, strict=strict)
        self.load_task_state(task_state, strict=strict, ema=ema)

    def create_evaluator(self, **kwargs: Any) -> Any:
        """Makes a timm ClassificationEvaluator (loss, top-1 and top-5 in percent), on the task's device by default."""
        from timm.task.evaluator import ClassificationEvaluator

        return ClassificationEvaluator(**{"device": self.device, **kwargs})


def _compiled(module: nn.Module | None, **options: Any) -> nn.Module:
    return cast(nn.Module, torch.compile(module, **options))
