"""Multi-label classification: each image has any number of classes, and the target is a vector of 0 and 1.

Dimensions: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from kdkit import losses
from kdkit.errors import ConfigError, ShapeError
from kdkit.runtime import distributed
from kdkit.tasks.classification import ClassificationTask
from kdkit.tasks.distillation import TaskOptions
from kdkit.tasks.logit_distillation import LogitDistillationTask
from kdkit.tasks.student_task import Criterion
from kdkit.tasks.term import DistillLosses
from kdkit.teachers import Teacher

_ROUNDING = 1e-3  # of the shares of mixed labels


class MultiLabelCrossEntropy(nn.Module):
    """Binary cross-entropy of each class, averaged over all labels that are known; exactly 0 if none is.

    A target of -1 means that nobody labelled this class of this image; it takes no part. Any other number outside 0 to
    1 makes the loss NaN, which stops a training: an error that names it would have to wait for the device in each step.

    Args:
        weight: factor of each class [C]; all 1 when None.
        pos_weight: factor of the present classes [C], such as the number of images without a class divided by the
            number with it; all 1 when None.
        label_smoothing: targets are moved towards 0.5 by this share, from 0 to 1.

    Source: torch.nn.BCEWithLogitsLoss, which it equals if every label is known.
    """

    takes_unlabelled: ClassVar[bool] = True
    """A task passes on all samples: one in which no class is present has labels too, and -1 marks what has none."""

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | Sequence[float] | None = None,
        pos_weight: Tensor | Sequence[float] | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ConfigError(f"label_smoothing is a share from 0 to 1, got {label_smoothing}")
        for name, values in (("weight", weight), ("pos_weight", pos_weight)):
            self.register_buffer(name, None if values is None else torch.as_tensor(values, dtype=torch.float32))
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns a scalar [] from logits [B, C] and targets [B, C] of 0 and 1, or shares of both, -1 for not known.

        Raises:
            ShapeError: the target holds class indices [B], or another number of classes.
        """
        if target.shape != logits.shape:
            raise ShapeError(
                f"multi-label targets are [B, C] of 0 and 1, got {list(target.shape)} for logits {list(logits.shape)}: "
                "class indices [B] need a ClassificationTask or a LogitDistillationTask"
            )
        target = target.masked_fill((target > 1 + _ROUNDING) | ((target < 0) & (target != -1)), torch.nan)
        known = ~(target < 0)  # NaN is not a mark for unknown: it reaches the loss, which stops the training
        logits = torch.where(known, logits, torch.zeros_like(logits))  # an infinite logit takes no part either
        target = torch.where(known, target.to(logits.dtype), torch.zeros_like(logits))
        if self.label_smoothing > 0:
            target = (1 - self.label_smoothing) * target + self.label_smoothing / 2
        each = F.binary_cross_entropy_with_logits(
            logits, target, weight=self.weight, pos_weight=self.pos_weight, reduction="none"
        )
        return (each * known).sum() / known.sum().clamp(min=1)


class MultiLabelEvaluator:
    """Loss and mean average precision (mAP, percent) over all images of a validation, on every rank.

    Average precision of a class: mean over its positive images of the precision at their place, images sorted by score;
    images of equal score count as one place. Classes without a positive image take no part, nor do labels of -1. It is
    scikit-learn's average_precision_score, averaged over the classes. The protocol is that of timm's evaluators.

    Args:
        max_samples: images beyond this many are not counted: timm's loops give the number of this rank's images
            without the padding of its sampler. None counts all.
    """

    default_metric = "mAP"
    metric_names = ("loss", "mAP")

    def __init__(self, *, max_samples: int | None = None) -> None:
        self.max_samples = max_samples
        self.reset()

    def reset(self) -> None:
        """Forgets all batches."""
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, output: Tensor, target: Tensor) -> None:
        """Adds logits [B, C] and targets [B, C] of a batch."""
        left = None if self.max_samples is None else max(0, self.max_samples - sum(map(len, self._outputs)))
        self._outputs.append(output[:left].detach().float().cpu())
        self._targets.append(target[:left].detach().float().cpu())

    def summary(self) -> dict[str, float]:
        """The metrics so far of this rank's images."""
        return self.compute()

    def compute(self, distributed: bool = False) -> dict[str, float]:
        """'loss' (binary cross-entropy, nats) and 'mAP' (percent); NaN without a positive image, or any.

        With `distributed`, over the images of all ranks, of which some may have none; all ranks must call it.
        """
        batches = list(zip(self._outputs, self._targets, strict=True))
        if distributed:
            batches = [pair for of_rank in _gather(batches) for pair in of_rank]
        if not batches:
            return {"loss": float("nan"), "mAP": float("nan")}
        output, target = (torch.cat(side) for side in zip(*batches, strict=True))
        loss = MultiLabelCrossEntropy()(output.double(), target)
        return {"loss": float(loss), "mAP": 100 * mean_average_precision(output, target)}


def mean_average_precision(scores: Tensor, target: Tensor) -> float:
    """Mean over the classes of the average precision, from scores [N, C] and targets [N, C], -1 for not known.

    NaN if no class has a positive image, or a score is NaN, which has no place in an order.
    """
    if bool(scores.isnan().any()):
        return float("nan")
    precisions = [_average_precision(*pair) for pair in zip(scores.T, target.T, strict=True)]
    found = [value for value in precisions if value is not None]
    return sum(found) / len(found) if found else float("nan")


def _average_precision(scores: Tensor, target: Tensor) -> float | None:
    """Of one class, from scores [N] and targets [N]; None without a positive image."""
    scores, target = scores[target >= 0], (target[target >= 0] > 0.5).double()
    if not bool(target.any()):
        return None
    order = scores.argsort(descending=True)
    scores, hits = scores[order], target[order].cumsum(0)
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[1:] != scores[:-1]  # the last image of each run of equal scores
    hits, places = hits[last], torch.arange(1, len(scores) + 1)[last]
    gained = torch.diff(hits, prepend=hits.new_zeros(1))
    return float((gained * hits / places).sum() / hits[-1])


def _gather(value: list[tuple[Tensor, Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    return distributed.all_gather(value)


class MultiLabelClassificationTask(ClassificationTask):
    """Trains a student on multi-label targets alone.

    Args:
        student_model: the model to train; one logit per class.
        criterion: loss of (logits [B, C], target [B, C]) []; MultiLabelCrossEntropy by default, which takes weights.
        options: device, dtype, verbose, as for TrainingTask.
    """

    is_multi_label: ClassVar[bool] = True

    def __init__(self, student_model: nn.Module, criterion: Criterion | None = None, **options: Any) -> None:
        super().__init__(student_model, criterion or MultiLabelCrossEntropy(), **options)

    def create_evaluator(self, **kwargs: Any) -> Any:
        """Makes a MultiLabelEvaluator; of the arguments of timm's evaluators it needs max_samples alone."""
        return MultiLabelEvaluator(max_samples=kwargs.get("max_samples"))


class MultiLabelDistillationTask(LogitDistillationTask):
    """Trains a student on multi-label targets and the logits of a multi-label teacher, live or cached.

    Args:
        student_model, teacher: as for DistillationTask.
        criterion: loss of (logits [B, C], target [B, C]) []; MultiLabelCrossEntropy by default, which takes weights.
        distill_loss: as for DistillationTask; named losses must be of multi-label logits, such as sigmoid_kl.
        options: further arguments of DistillationTask.

    Raises:
        ConfigError: a named loss compares one distribution over the classes.
    """

    is_multi_label: ClassVar[bool] = True

    def __init__(
        self,
        student_model: nn.Module,
        teacher: str | nn.Module | Teacher | None = None,
        criterion: Criterion | None = None,
        *,
        distill_loss: DistillLosses = "sigmoid_kl",
        **options: Unpack[TaskOptions],
    ) -> None:
        super().__init__(
            student_model, teacher, criterion or MultiLabelCrossEntropy(), distill_loss=distill_loss, **options
        )
        able = [name for name in losses.available() if losses.loss_spec(name).multi_label]
        for term in self.terms:
            if term.loss is None and term.name not in able:
                raise ConfigError(
                    f"the loss {term.name!r} compares one distribution over the classes, which multi-label logits are "
                    f"not: take {' or '.join(able)}"
                )

    def create_evaluator(self, **kwargs: Any) -> Any:
        """Makes a MultiLabelEvaluator; of the arguments of timm's evaluators it needs max_samples alone."""
        return MultiLabelEvaluator(max_samples=kwargs.get("max_samples"))
