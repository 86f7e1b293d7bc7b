"""CRD: the student's embedding next to its teacher's, and far from those of other samples, which a memory keeps.

Dimensions: B batch, R samples of the dataset, K negatives of a sample, D width of a feature, E width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit.errors import ConfigError, ShapeError
from kdkit.losses._checks import check_positive, described, full_precision
from kdkit.losses._features import check_width, unit
from kdkit.losses._known import Known
from kdkit.losses.registry import feature_loss
from kdkit.types import to_compute_dtype

_ELEMENTS = 2**24  # numbers of the memory that are gathered at a time: 64 MiB


@full_precision
def crd(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    student_memory: Tensor,
    teacher_memory: Tensor,
    index: Tensor,
    log_z: Tensor,
    *,
    temperature: float = 0.07,
) -> Tensor:
    """Noise-contrastive loss of both embeddings, each against the memory of the other side (`CRD` keeps the memory).

    For an embedding a, with p_k = exp(<a, m_k> / T) / Z for the K + 1 rows m_k of the memory at its index, c = K / R:
    mean_b of -log(p_0 / (p_0 + c)) - sum_k log(c / (p_k + c)), k from 1 to K; the student's plus the teacher's.

    Args:
        student_embedding: [B, E], of L2 norm 1.
        teacher_embedding: [B, E], of L2 norm 1; the gradient flows into it too, because its projection trains.
        student_memory: earlier embeddings by the student of all samples [R, E].
        teacher_memory: the same by the teacher.
        index: rows of the memories [B, 1 + K] int64, the sample's own first.
        log_z: log Z of the student's and of the teacher's embeddings [2].
        temperature: T > 0.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Tian et al. 2020, "Contrastive Representation Distillation", equations 17 to 19;
        HobbitLong/RepDistiller crd/criterion.py and crd/memory.py. Usual weight 0.8.
    """
    check_positive("temperature", temperature)
    sides = ((student_embedding, teacher_memory), (teacher_embedding, student_memory))
    parts = [
        _contrast(anchor, memory, index, _scores(anchor, memory, index, temperature), of_side, temperature)
        for (anchor, memory), of_side in zip(sides, log_z, strict=True)
    ]
    return torch.stack(parts).sum()


@feature_loss("crd", projects=True, needs_rows=True)
class CRD(nn.Module):
    """`crd` with its parameters, a linear embedding of each side, and its memory of every sample of the dataset.

    The memory is a buffer: a checkpoint holds it, and a run resumes with it. Every training step draws the negatives
    from torch's generator, and then moves the memory of its samples towards their embeddings.

    Args:
        student_width: D of the student's feature.
        teacher_width: D of the teacher's feature.
        num_rows: R, samples of the dataset.
        width: E, width of the embeddings.
        negatives: K, negatives of each sample, drawn from all R with replacement.
        temperature: T > 0.
        momentum: share of the memory that a step keeps, in [0, 1).

    Attributes:
        gather: brings the rows [B, ...] of all ranks together; a task sets it where several ranks train one student.

    Raises:
        ConfigError: an option is out of range.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    log_z: Tensor
    num_batches: Tensor

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        num_rows: int,
        *,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value in {"num_rows": num_rows, "width": width, "negatives": negatives}.items():
            if type(value) is not int or value < 1:
                raise ConfigError(f"crd: {name} must be a whole number from 1, got {value!r}")
        check_positive("temperature", temperature)
        if not 0 <= momentum < 1:
            raise ConfigError(f"crd: momentum must be in [0, 1), got {momentum!r}")
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.student_embedding = nn.Linear(student_width, width)
        self.teacher_embedding = nn.Linear(teacher_width, width)
        bound = math.sqrt(3 / width)  # rows of L2 norm about 1
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(num_rows, width).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))
        self.gather: Callable[[Tensor], Tensor] = _as_they_are

    def forward(
        self, student_feature: Tensor, teacher_feature: Tensor, row: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar of shape []; in training mode the samples are then remembered.

        Args:
            student_feature: [B, D].
            teacher_feature: [B, D]; no gradient flows into it, but into its embedding.
            row: number of each sample in the dataset [B] int64.
            index: rows of the memory [B, 1 + K], the sample's own first; drawn when None.
        """
        _check(student_feature, teacher_feature, row, len(self.student_memory))
        check_width(student_feature, self.student_embedding.in_features)
        check_width(teacher_feature, self.teacher_embedding.in_features, "teacher")
        row = row.to(student_feature.device, torch.int64)
        index = self.draw(row) if index is None else index
        with torch.autocast(student_feature.device.type, enabled=False):
            student = _embed(self.student_embedding, student_feature)
            teacher = _embed(self.teacher_embedding, teacher_feature.detach())
            sides = ((student, self.teacher_memory), (teacher, self.student_memory))
            scores = [_scores(anchor, memory, index, self.temperature) for anchor, memory in sides]
            log_z = self._normalise(scores)
            parts = [
                _contrast(anchor, memory, index, of_side, z, self.temperature)
                for (anchor, memory), of_side, z in zip(sides, scores, log_z, strict=True)
            ]
            if self.training:
                self._remember(student.detach(), teacher.detach(), row)
        return torch.stack(parts).sum()

    def draw(self, row: Tensor) -> Tensor:
        """Rows of the memory [B, 1 + K]: each sample's own, and K of all."""
        drawn = torch.randint(len(self.student_memory), (len(row), self.negatives), device=row.device)
        return torch.cat([row.unsqueeze(1), drawn], dim=1)

    @torch.no_grad()
    def _normalise(self, scores: list[Tensor]) -> Tensor:
        """log Z of both sides [2]: R times the mean of exp(score) over the first training batch, of all ranks."""
        mean = torch.stack([of_side.logsumexp(dim=(0, 1)) for of_side in scores]) - math.log(scores[0].numel())
        if self.training:
            of_ranks = self.gather(mean.unsqueeze(0))
            mean = of_ranks.logsumexp(dim=0) - math.log(len(of_ranks))
        log_z = torch.where(self.num_batches > 0, self.log_z, mean + math.log(len(self.student_memory)))
        if self.training:
            is_finite = log_z.isfinite().all()  # a batch with NaN sets nothing
            self.log_z.copy_(torch.where(is_finite, log_z, self.log_z))
            self.num_batches += is_finite
        return log_z

    @torch.no_grad()
    def _remember(self, student: Tensor, teacher: Tensor, row: Tensor) -> None:
        """Moves the memory at `row` [B] towards embeddings [B, E], those of all ranks; not towards NaN or infinity."""
        row = self.gather(row)
        same = row.unsqueeze(1) == row
        for memory, embedding in ((self.student_memory, student), (self.teacher_memory, teacher)):
            made = self.gather(embedding)
            is_finite = made.isfinite().all(dim=1)
            counted = (same & is_finite).to(made.dtype)
            count = counted.sum(dim=1, keepdim=True)
            # A sample that occurs twice counts with its mean: the order of writes does not matter then.
            new = counted @ made.where(is_finite.unsqueeze(1), 0) / count.clamp_min(1)
            before = memory[row]
            mixed = self.momentum * before.to(new.dtype) + (1 - self.momentum) * new
            memory.index_copy_(0, row, torch.where(count > 0, unit(mixed).to(memory.dtype), before))


def _as_they_are(rows: Tensor) -> Tensor:
    return rows


def _check(student: Tensor, teacher: Tensor, row: Tensor | None, num_rows: int) -> None:
    for feature in (student, teacher):
        if feature.ndim != 2:
            raise ShapeError(f"crd takes features [B, D], got {list(feature.shape)}: take taps such as 'pooled'")
        if 0 in feature.shape or not feature.is_floating_point():
            raise ShapeError(f"crd takes features that are floating point and not empty, got {described(feature)}")
    fits = isinstance(row, Tensor) and len(student) == len(teacher) == row.numel() and row.ndim == 1
    if row is None or not fits or row.is_floating_point() or row.dtype == torch.bool:
        raise ShapeError(
            f"crd takes the number of each sample in the dataset, row [B], got {described(row)} for features "
            f"{list(student.shape)} and {list(teacher.shape)}"
        )
    if row.device.type != "cpu" or torch.compiler.is_compiling():
        return  # a check would wait for the device
    if not 0 <= int(row.min()) <= int(row.max()) < num_rows:
        raise ConfigError(
            f"crd remembers {num_rows} samples, got the rows {int(row.min())} to {int(row.max())}: num_rows is the "
            "length of the dataset"
        )


def _embed(embedding: nn.Linear, feature: Tensor) -> Tensor:
    """The embedding [B, E] of a feature [B, D], of L2 norm 1."""
    return unit(to_compute_dtype(embedding(feature.to(embedding.weight.dtype))))


def _gathered(memory: Tensor, index: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Parts of the batch, with their rows of the memory [b, 1 + K, E], which would be many for a whole batch."""
    step = max(1, _ELEMENTS // (index.shape[1] * memory.shape[1]))
    for start in range(0, len(index), step):
        part = slice(start, start + step)
        yield part, memory[index[part]].to(dtype)


@torch.no_grad()
def _scores(anchor: Tensor, memory: Tensor, index: Tensor, temperature: float) -> Tensor:
    """<a, m> / T of each embedding [B, E] and the rows of the memory [R, E] at its index: [B, 1 + K]."""
    anchor = to_compute_dtype(anchor)
    parts = [torch.einsum("bke,be->bk", rows, anchor[part]) for part, rows in _gathered(memory, index, anchor.dtype)]
    return torch.cat(parts) / temperature


def _contrast(
    anchor: Tensor, memory: Tensor, index: Tensor, scores: Tensor, log_z: Tensor, temperature: float
) -> Tensor:
    """The loss of one side [], with its gradient for the embeddings [B, E]."""
    anchor = to_compute_dtype(anchor)
    with torch.no_grad():
        # log(p / c): the log of the odds that a row is the sample's own.
        odds = scores - log_z - math.log((index.shape[1] - 1) / len(memory))
        value = (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(dim=1)).mean()
        of_scores = torch.cat([torch.sigmoid(odds[:, :1]) - 1, torch.sigmoid(odds[:, 1:])], dim=1)
        of_scores = of_scores / (len(anchor) * temperature)
        parts = [
            torch.einsum("bke,bk->be", rows, of_scores[part]) for part, rows in _gathered(memory, index, anchor.dtype)
        ]
        slope = torch.cat(parts)
    loss: Tensor = Known.apply(anchor, value, slope)
    return loss
