"""The one contract between teachers and tasks: what goes in, what a teacher says, who can say it.

Dimensions: B batch, C classes, D width, H W height and width, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Normalization:
    """What images are normalised by, (pixel / 255 - mean) / std: one number for each of red, green and blue."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def of(cls, model: nn.Module) -> Normalization:
        """What a timm model expects, by its pretrained_cfg; ImageNet's where it has none."""
        from timm.utils import unwrap_model  # here, so that losses need torch alone

        config = getattr(unwrap_model(model), "pretrained_cfg", None) or {}
        return cls(tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD)))


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch on its way to a student and its teacher.

    Attributes:
        input: images [B, 3, H, W], float, in the student's normalisation.
        target: class indices [B] int64, or soft labels [B, C].
        row: dataset indices of the samples [B] int64 on the CPU, or None when nothing is replayed.
        view: number of the replayed view that the whole batch shows, or None.
        teacher_input: the same views at the size that a live teacher is to see [B, 3, T, T], in the same normalisation;
            None where it sees `input`.
    """

    input: Tensor
    target: Tensor
    row: Tensor | None = None
    view: int | None = None
    teacher_input: Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch with input and target on `device`; rows stay on the CPU, where caches are read."""
        return Batch(
            self.input.to(device, non_blocking=non_blocking),
            self.target.to(device, non_blocking=non_blocking),
            self.row,
            self.view,
            None if self.teacher_input is None else self.teacher_input.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, eq=False)
class SparseLogits:
    """A teacher's k likeliest classes; what they leave of the mass is spread evenly over the others.

    Attributes:
        ids: the classes [B, k] int64.
        log_probs: their log-probabilities [B, k].
        log_rest: log of the mass of all other classes together [B].
        num_classes: C.
    """

    ids: Tensor
    log_probs: Tensor
    log_rest: Tensor
    num_classes: int

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SparseLogits:
        """The same on `device`."""
        ids, log_probs, log_rest = (
            tensor.to(device, non_blocking=non_blocking) for tensor in (self.ids, self.log_probs, self.log_rest)
        )
        return SparseLogits(ids, log_probs, log_rest, self.num_classes)


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """What a teacher said about one batch; immutable, without gradient.

    Attributes:
        logits: [B, C] float, or None. From a cache: normalised log-probabilities, which serve as logits.
        features: tap name -> [B, D], [B, D, H, W] or [B, N, D].
        sparse: in place of logits, where a cache was asked not to build them.
    """

    logits: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    sparse: SparseLogits | None = None

    def __post_init__(self) -> None:
        if self.logits is not None:
            object.__setattr__(self, "logits", self.logits.detach())
        detached = {name: tensor.detach() for name, tensor in self.features.items()}
        object.__setattr__(self, "features", MappingProxyType(detached))

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping proxy does not pickle
        return TeacherOutput, (self.logits, dict(self.features), self.sparse)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TeacherOutput:
        """The same output with every tensor on `device`."""
        return TeacherOutput(
            None if self.logits is None else self.logits.to(device, non_blocking=non_blocking),
            {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.features.items()},
            None if self.sparse is None else self.sparse.to(device, non_blocking=non_blocking),
        )


@runtime_checkable
class TeacherSource(Protocol):
    """Anything that can say what the teacher says: a live Teacher or a cache."""

    def __call__(self, batch: Batch) -> TeacherOutput:
        """What the teacher says about `batch`."""
        ...
