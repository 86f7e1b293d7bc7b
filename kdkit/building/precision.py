"""The precision in which a build runs its teacher: bfloat16 autocast on CUDA, where the outputs stay as good.

Dimensions: B batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.building.config import BuildConfig
from kdkit.building.teacher import run_teacher, with_streams
from kdkit.cache.fidelity import kl_divergence, sigmoid_divergence
from kdkit.cache.format.constants import LOGITS
from kdkit.data import RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.data.batch import collate
from kdkit.runtime import distributed
from kdkit.teachers import Teacher, TeacherEnsemble

_IMAGES = 64
_MOST_KL = 0.005  # nats: an eighth of what lowrank loses at 96 bytes
_MOST_ERROR = 0.02  # of features, relative to their size


@dataclass(frozen=True)
class PrecisionCheck:
    """How far the outputs in bfloat16 autocast are from those in float32."""

    differences: Mapping[str, float]
    """Stream -> mean KL(float32 || bfloat16) in nats at T = 1, of features the mean relative error."""
    num_images: int
    """Images that were compared."""

    @property
    def passes(self) -> bool:
        """Whether all streams are close enough; NaN is not."""
        return all(
            value <= (_MOST_KL if stream == LOGITS else _MOST_ERROR) for stream, value in self.differences.items()
        )

    def __str__(self) -> str:
        parts = [
            f"{stream} {value:.2g} {'nats' if stream == LOGITS else 'of their size'}"
            for stream, value in self.differences.items()
        ]
        return f"off by {', '.join(parts)} from float32 on {self.num_images} images"


def choose_autocast(
    teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig, device: torch.device
) -> tuple[Teacher, str]:
    """The teacher in the precision that a build runs it in, and what the header says of it; the same on all ranks.

    On CUDA a teacher of float32 weights gets bfloat16 autocast if a check on some images passes, unless the exact codec
    float32 was chosen. A teacher whose precision is given keeps it.

    Args:
        teacher: on `device`.
        dataset: samples and recipe.
        config: streams and codec of the build.
        device: where the build runs.
    """
    given = teacher.fingerprint()
    named = given.get("autocast") or given["dtype"]
    if device.type != "cuda" or named != "float32" or config.codec == "float32" or _has_autocast(teacher):
        return teacher, str(named)
    half = with_autocast(teacher, torch.bfloat16)
    found = distributed.on_rank_zero(lambda: check_precision(teacher, half, dataset, config, device))
    if found is None:
        return teacher, "float32, because no image could be read for a check of bfloat16"
    if not found.passes:
        return teacher, f"float32, because autocast bfloat16 is {found}"
    return half, f"autocast bfloat16, {found}"


def with_autocast(teacher: Teacher, dtype: torch.dtype | None) -> Teacher:
    """A teacher of the same model under autocast to `dtype`; of an ensemble, each member."""
    if isinstance(teacher, TeacherEnsemble):
        members = [member._with(autocast=dtype) for member in teacher.members]
        return TeacherEnsemble(members, teacher.weights, name=teacher.name)
    return teacher._with(autocast=dtype)


@torch.no_grad()
def check_precision(
    teacher: Teacher, half: Teacher, dataset: ReplayedDataset, config: BuildConfig, device: torch.device
) -> PrecisionCheck | None:
    """Runs both teachers on up to 64 images, spread over the dataset; None if no image can be read.

    Args:
        teacher, half: the same model in float32 and in half precision.
        dataset, config, device: as for `choose_autocast`.
    """
    shown, streams = dataset.for_teacher(), config.streams
    samples = list(_readable(shown))
    if not samples:
        return None
    loader = ReplayLoader(shown, RangeSampler([], len(samples)), teacher.input_normalization, device=device)
    pixels = collate(samples)
    whole, rounded = (run_teacher(with_streams(one, streams), loader, pixels, streams) for one in (teacher, half))
    between = sigmoid_divergence if dataset.is_multi_label else kl_divergence
    differences = {
        stream: float(between(values, rounded[stream]).mean())
        if stream == LOGITS
        else _relative_error(values, rounded[stream])
        for stream, values in whole.items()
    }
    return PrecisionCheck(differences, len(samples))


def _relative_error(features: Tensor, rounded: Tensor) -> float:
    rows = features.float().flatten(1)
    error = (rounded.float().flatten(1) - rows).norm(dim=1)
    return float((error / rows.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)).mean())


def _has_autocast(teacher: Teacher) -> bool:
    members: Sequence[Teacher] = teacher.members if isinstance(teacher, TeacherEnsemble) else (teacher,)
    return any(member.autocast is not None for member in members)


def _readable(dataset: ReplayedDataset) -> Iterator[Any]:
    """Samples of view 0; an image that cannot be read is left to the build, which lists all of them."""
    for row in range(0, len(dataset), -(-len(dataset) // _IMAGES)):
        try:
            yield dataset[row, 0]
        except Exception:
            continue
