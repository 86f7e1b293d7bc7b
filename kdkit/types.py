"""The one contract between teachers and tasks: a Batch goes in, a TeacherOutput comes out of a TeacherSource.

Dimensions: B batch, C classes, k classes kept, D width, H W height and width, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LOG_ZERO = -1e30
"""Finite stand-in for log 0. It is finite so that 0 * (LOG_ZERO - LOG_ZERO) is 0 and no NaN reaches a gradient,
and small enough to stay finite in float32 when summed over a row."""

_NOTHING_LEFT = -1e4  # log of a rest mass of 0: negligible as a probability, but log C is still resolved in float32


def to_compute_dtype(tensor: Tensor) -> Tensor:
    """Returns `tensor` in float32, in which losses are computed, or in float64 when it is float64 already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def to_double(tensor: Tensor) -> Tensor:
    """Returns `tensor` in float64, or in float32 on MPS, which has no float64."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


@dataclass(frozen=True)
class Normalization:
    """The normalisation of images, (pixel / 255 - mean) / std, with one number each for red, green and blue."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def of(cls, model: nn.Module) -> Normalization:
        """Returns the normalisation that a timm model expects, by its pretrained_cfg; ImageNet's if it has none."""
        from timm.utils import unwrap_model  # here, so that losses need only torch

        config = getattr(unwrap_model(model), "pretrained_cfg", None) or {}
        return cls(tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD)))


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of images for a student and its teacher.

    Attributes:
        input: images [B, 3, H, W], float, in the student's normalisation.
        target: class indices [B] int64, or soft labels [B, C].
        row: dataset indices of the samples [B] int64 on the CPU, or None when nothing is replayed.
        view: number of the replayed view of each sample [B] int64 on the CPU, one number for the whole batch, or None.
        teacher_input: the same views at the size that a live teacher takes [B, 3, T, T], in the same normalisation;
            None if the teacher takes `input`.
        pixel_crc32: CRC-32 of the uint8 pixels of rows that have a pixel hash [B] int64 on the CPU, -1 for other rows;
            of `teacher_input` if there is one. A cache compares it with what its teacher saw. None: not compared.
    """

    input: Tensor
    target: Tensor
    row: Tensor | None = None
    view: Tensor | int | None = None
    teacher_input: Tensor | None = None
    pixel_crc32: Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Returns the same batch with images and target on `device`; rows and views stay on the CPU, for caches."""
        return Batch(
            self.input.to(device, non_blocking=non_blocking),
            self.target.to(device, non_blocking=non_blocking),
            self.row,
            self.view,
            None if self.teacher_input is None else self.teacher_input.to(device, non_blocking=non_blocking),
            self.pixel_crc32,
        )


@dataclass(frozen=True, eq=False)
class SparseLogits:
    """The k most probable classes of a teacher; the remaining mass is spread evenly over the other classes.

    It takes the place of `teacher_logits` in the losses kl, soft_ce and dkd.

    Attributes:
        ids: the kept classes [B, k] int64, distinct within a row.
        log_probs: their log-probabilities at temperature 1 [B, k].
        num_classes: C.
        log_rest: log of the mass of all other classes together [B], or None for 1 - sum exp(log_probs). That
            difference is rounding noise for a confident row, which a temperature above 1 makes large: pass it if known.
    """

    ids: Tensor
    log_probs: Tensor
    num_classes: int
    log_rest: Tensor | None = None

    @classmethod
    def from_logits(cls, logits: Tensor, k: int) -> SparseLogits:
        """Keeps the k most probable classes of logits [B, C].

        Raises:
            ConfigError: k is not in 1..C.
        """
        if not 1 <= k <= logits.shape[1]:
            raise ConfigError(f"k must be in 1..{logits.shape[1]} for logits {list(logits.shape)}, got {k}")
        log_p = F.log_softmax(to_compute_dtype(logits.detach()), dim=1)
        log_probs, ids = log_p.topk(k, dim=1)
        return cls(ids, log_probs, logits.shape[1], torch.logsumexp(log_p.scatter(1, ids, LOG_ZERO), dim=1))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SparseLogits:
        """Returns the same distribution with every tensor on `device`."""
        rest = None if self.log_rest is None else self.log_rest.to(device, non_blocking=non_blocking)
        ids, log_probs = (tensor.to(device, non_blocking=non_blocking) for tensor in (self.ids, self.log_probs))
        return SparseLogits(ids, log_probs, self.num_classes, rest)

    def to_dense(self) -> Tensor:
        """Returns the same distribution as log-probabilities [B, C]."""
        top, each = self.soften(1.0)
        return each.unsqueeze(1).repeat(1, self.num_classes).scatter(1, self.ids, top)

    def soften(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities at temperature T: of the kept classes [B, k], and of each other class [B]."""
        top = to_compute_dtype(self.log_probs.detach())
        others = self.num_classes - top.shape[1]
        if self.log_rest is None:
            rest = -torch.expm1(to_double(top).logsumexp(dim=1)).clamp_max(0.0)
            log_rest = rest.log().to(top.dtype)
        else:
            log_rest = to_compute_dtype(self.log_rest.detach())
        each = log_rest.clamp_min(_NOTHING_LEFT) - math.log(max(others, 1))
        top, each = top / temperature, each / temperature
        of_others = each + math.log(others) if others else torch.full_like(each, LOG_ZERO)
        total = torch.logsumexp(torch.cat([top, of_others.unsqueeze(1)], dim=1), dim=1)
        return top - total.unsqueeze(1), each - total


class TeacherMember(NamedTuple):
    """One of several teachers whose distributions are mixed."""

    name: str
    """Its name in logs, e.g. the number of its cache."""
    logits: Tensor
    """Its logits [B, C], at the temperature at which they enter the mix."""
    weight: float
    """Its share of the mix; those of all members have the sum 1."""


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """A teacher's outputs for one batch; immutable, without gradient.

    Attributes:
        logits: [B, C] float, or None. From a cache they are normalised log-probabilities, which serve as logits.
        features: tap name -> [B, D], [B, D, H, W] or [B, N, D].
        is_normalized: whether the logits are log-probabilities of one distribution over the classes, whose scale and
            offset a multi-label loss could not use.
        sparse: takes the place of logits if a cache was opened to return its sparse rows as they are.
        members: the teachers that `logits` is the mix of; empty for one teacher.
    """

    logits: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    sparse: SparseLogits | None = None
    is_normalized: bool = False
    members: tuple[TeacherMember, ...] = ()

    def __post_init__(self) -> None:
        if self.logits is not None:
            object.__setattr__(self, "logits", self.logits.detach())
        detached = {name: tensor.detach() for name, tensor in self.features.items()}
        object.__setattr__(self, "features", MappingProxyType(detached))

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping proxy does not pickle
        return TeacherOutput, (self.logits, dict(self.features), self.sparse, self.is_normalized, self.members)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TeacherOutput:
        """Returns the same outputs with every tensor on `device`."""
        return TeacherOutput(
            None if self.logits is None else self.logits.to(device, non_blocking=non_blocking),
            {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.features.items()},
            None if self.sparse is None else self.sparse.to(device, non_blocking=non_blocking),
            self.is_normalized,
            tuple(m._replace(logits=m.logits.to(device, non_blocking=non_blocking)) for m in self.members),
        )

    @property
    def any_logits(self) -> Tensor | SparseLogits | None:
        """The logits, dense or sparse, or None if there are neither."""
        return self.logits if self.sparse is None else self.sparse


@runtime_checkable
class TeacherSource(Protocol):
    """Anything that returns a teacher's outputs for a batch: a live Teacher, a TeacherEnsemble or a cache."""

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Returns the teacher's outputs for `batch`."""
        ...


@runtime_checkable
class LiveSource(TeacherSource, Protocol):
    """A TeacherSource that runs a model on the images of a batch: a Teacher, or a mix of caches and a live teacher."""

    def for_input(self, normalization: Normalization) -> TeacherSource:
        """Returns the same source whose images arrive in `normalization`, the student's."""
        ...
