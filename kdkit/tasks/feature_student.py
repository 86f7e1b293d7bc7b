"""The trainable module of feature distillation: the student, and the losses on features with their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.models import group_parameters
from timm.utils import unwrap_model
from torch import Tensor, nn

from kdkit.runtime import distributed
from kdkit.tasks.comparison import Comparison
from kdkit.tasks.exits import Exits
from kdkit.teachers.tap import forward_with_taps

_PREFIX = "student."


class FeatureStudent(nn.Module):
    """One module, so that DistributedDataParallel, an optimizer and an EMA include projections with the student.

    timm's `group_matcher` and `no_weight_decay` are the student's, under its prefix; the losses' parameters belong to
    the last layer.

    Args:
        student: the model to train.
        comparisons: the terms on features, by key.
        has_idle_head: whether no loss depends on the logits, so that the head takes no part in the backward pass.
    """

    def __init__(
        self, student: nn.Module, comparisons: Mapping[str, Comparison | Exits], *, has_idle_head: bool
    ) -> None:
        super().__init__()
        self.student = student
        self.comparisons = nn.ModuleDict(comparisons)
        self.has_idle_head = has_idle_head
        taps = (tap for comparison in comparisons.values() for tap in comparison.term.student_taps)
        self.taps: Sequence[str] = tuple(dict.fromkeys(taps))
        self.needs = tuple(dict.fromkeys(name for comparison in comparisons.values() for name in comparison.needs))

    def forward(
        self, input: Tensor, teacher_features: dict[str, Tensor], samples: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns logits [B, C] and terms [] by key.

        Args:
            input: images [B, 3, H, W].
            teacher_features: the teacher's features by tap.
            samples: what the losses need of the samples, by the names in `needs`.
        """
        logits, features = forward_with_taps(self.student, input, self.taps)
        terms = {key: comparison(features, teacher_features, samples) for key, comparison in self.comparisons.items()}
        return (logits.detach() if self.has_idle_head else logits), terms

    def join_ranks(self) -> None:
        """Makes the memories of losses equal on all ranks, which then keep them equal themselves. Collective."""
        named = self.comparisons.named_modules(prefix="comparisons")
        memories = {name: module for name, module in named if hasattr(module, "gather")}
        for module in memories.values():
            setattr(module, "gather", distributed.all_gather_rows)  # noqa: B010 -- not a tensor
            distributed.broadcast_buffers(module)
        names = [f"{name}.{buffer}" for name, module in memories.items() for buffer, _ in module.named_buffers()]
        # DistributedDataParallel would otherwise send each whole memory from rank 0 before every step.
        ignored = [prefix + name for prefix in ("", "_orig_mod.") for name in names]
        self._ddp_params_and_buffers_to_ignore = ignored

    def no_weight_decay(self) -> set[str]:
        """Returns the names of parameters without weight decay, for timm's optimizer factory."""
        student: Any = unwrap_model(self.student)
        names = student.no_weight_decay() if hasattr(student, "no_weight_decay") else ()
        return {_PREFIX + name for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int] | dict[str, Any]:
        """Returns a map from parameter names to the number of their layer, for timm's layer-wise learning rates."""
        student: Any = unwrap_model(self.student)
        if not hasattr(student, "group_matcher"):
            return {}
        layers: dict[str, int] = group_parameters(student, student.group_matcher(coarse=coarse), reverse=True)
        last = max(layers.values(), default=0)
        return lambda name: layers.get(name.removeprefix(_PREFIX), last) if name.startswith(_PREFIX) else last
