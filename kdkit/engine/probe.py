"""A look at the teacher before the build: what codecs are fitted to and measured on."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit.cache.codecs import Codec
from kdkit.cache.fidelity import measure_fidelity
from kdkit.cache.reader import LOGITS
from kdkit.config import BuildConfig
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.data.replay import view_seed
from kdkit.engine.ask import ask, refuse_unheld
from kdkit.teachers import Teacher

FIT_ROWS = 16_384
"""Rows that a codec is fitted to, at most."""
MEASURED_ROWS = 512
"""Rows, others than those, that its fidelity is measured on, at most."""


def fit_and_measure(
    codec: Codec, teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig, device: torch.device | str
) -> tuple[Codec, dict[str, float]]:
    """Asks the teacher about rows drawn at random over the whole dataset, since folders are sorted by class.

    Returns:
        The codec, fitted where it learns something, and its fidelity on rows that it was not fitted on: 512 of them, or
        a quarter of a small dataset. A single row serves for both.
    """
    wanted = MEASURED_ROWS + (FIT_ROWS if codec.needs_fit else 0)
    generator = torch.Generator().manual_seed(view_seed(dataset.recipe.seed, "probe", 0) >> 1)
    rows = torch.randperm(len(dataset), generator=generator)[:wanted].tolist()
    logits = _ask_about(rows, codec, teacher, dataset, config, device)
    if not codec.needs_fit:
        return codec, measure_fidelity(codec, logits)
    measured = min(MEASURED_ROWS, max(1, len(logits) // 4))
    head = teacher.head_weight
    fitted = codec.fit(logits[measured:] if len(logits) > 1 else logits, None if head is None else head.float().cpu())
    return fitted, measure_fidelity(fitted, logits[:measured])


def _ask_about(
    rows: list[int],
    codec: Codec,
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
) -> Tensor:
    """The teacher's logits of view 0 of `rows`, float32 [R, C] on the CPU."""
    sampler = EpochSampler(rows, config.batch_size, shuffle=False)
    loader = ReplayLoader(dataset, sampler, teacher.input_normalization, device=device, num_workers=config.num_workers)
    answers = []
    for pixels in loader.pixel_batches():
        logits = ask(teacher, loader, pixels, [LOGITS])[LOGITS]
        refuse_unheld(logits, codec, LOGITS, teacher.name, dataset.keys, pixels)
        answers.append(logits.float().cpu())
    return torch.cat(answers)
