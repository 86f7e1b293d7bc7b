"""The precision in which a teacher runs, in a build or live: bfloat16 autocast on CUDA, where its outputs stay as good.

Dimensions: B batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.cache.fidelity import kl_divergence, sigmoid_divergence
from kdkit.cache.format.constants import LOGITS
from kdkit.data import RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.data.batch import collate
from kdkit.runtime import distributed
from kdkit.teachers import Teacher, TeacherEnsemble
from kdkit.types import Batch

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
    teacher: Teacher,
    dataset: ReplayedDataset,
    streams: Collection[str],
    device: torch.device,
    *,
    is_exact: bool = False,
) -> tuple[Teacher, str]:
    """The teacher in the precision that it runs in, and what the header says of it; the same on all ranks. Collective.

    On CUDA a teacher of float32 weights gets bfloat16 autocast if a check on some images passes. A teacher whose
    precision is given keeps it.

    Args:
        teacher: on `device`.
        dataset: samples and recipe.
        streams: the outputs that are used: logits, or taps.
        device: where it runs.
        is_exact: whether its outputs are wanted as they are in float32, e.g. for the codec float32.
    """
    given = teacher.fingerprint()
    named = given.get("autocast") or given["dtype"]
    if device.type != "cuda" or named != "float32" or is_exact or _has_autocast(teacher):
        return teacher, str(named)
    half = with_autocast(teacher, torch.bfloat16)
    found = distributed.on_rank_zero(lambda: check_precision(teacher, half, dataset, streams, device))
    if found is None:
        return teacher, "float32, because no image could be read for a check of bfloat16"
    if not found.passes:
        return teacher, f"float32, because autocast bfloat16 is {found}"
    return half, f"autocast bfloat16, {found}"


def with_autocast(teacher: Teacher, dtype: torch.dtype | None) -> Teacher:
    """A teacher of the same model under autocast to `dtype`; of an ensemble, each member."""
    if isinstance(teacher, TeacherEnsemble):
        return teacher._of([member._with(autocast=dtype) for member in teacher.members])
    return teacher._with(autocast=dtype)


@torch.no_grad()
def check_precision(
    teacher: Teacher, half: Teacher, dataset: ReplayedDataset, streams: Collection[str], device: torch.device
) -> PrecisionCheck | None:
    """Runs both teachers on up to 64 images, spread over the dataset; None if no image can be read.

    Args:
        teacher, half: the same model in float32 and in half precision.
        dataset, streams, device: as for `choose_autocast`.
    """
    shown = dataset.for_teacher()
    samples = list(_readable(shown))
    if not samples:
        return None
    loader = ReplayLoader(shown, RangeSampler([], len(samples)), teacher.input_normalization, device=device)
    batch = loader.to_batch(collate(samples))
    whole, rounded = (_outputs(one, batch, streams) for one in (teacher, half))
    between = sigmoid_divergence if dataset.is_multi_label else kl_divergence
    differences = {
        stream: float(between(values, rounded[stream]).mean())
        if stream == LOGITS
        else _relative_error(values, rounded[stream])
        for stream, values in whole.items()
    }
    return PrecisionCheck(differences, len(samples))


def _outputs(teacher: Teacher, batch: Batch, streams: Collection[str]) -> dict[str, Tensor]:
    """The outputs of a batch, by stream; one that the teacher lacks is refused where it is used."""
    taps = [stream for stream in streams if stream != LOGITS]
    output = (teacher if set(taps) <= set(teacher.taps) else teacher.with_taps(taps))(batch)
    found = {LOGITS: output.logits, **output.features}
    return {stream: values for stream in streams if (values := found[stream]) is not None}


def _relative_error(features: Tensor, rounded: Tensor) -> float:
    rows = features.float().flatten(1)
    error = (rounded.float().flatten(1) - rows).norm(dim=1)
    return float((error / rows.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)).mean())


def _has_autocast(teacher: Teacher) -> bool:
    members: Sequence[Teacher] = teacher.members if isinstance(teacher, TeacherEnsemble) else (teacher,)
    return any(member.autocast is not None for member in members)


def _readable(dataset: ReplayedDataset) -> Iterator[Any]:
    """Samples of view 0; an image that cannot be read is left to whoever reads all of them."""
    for row in range(0, len(dataset), -(-len(dataset) // _IMAGES)):
        try:
            yield dataset[row, 0]
        except Exception:
            continue
