"""A look at the teacher before the build: what codecs are fitted to and measured on, and how large features are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.cache.codecs import Codec, RowCodec, create_feature_codec
from kdkit.cache.fidelity import measure_feature_fidelity, measure_fidelity
from kdkit.cache.format import LOGITS
from kdkit.config import BuildConfig
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.data.replay import view_seed
from kdkit.engine.ask import ask, refuse_unheld
from kdkit.teachers import Teacher

FIT_ROWS = 16_384
"""Rows that a codec is fitted to, at most."""
MEASURED_ROWS = 512
"""Rows, others than those, that its fidelity is measured on, at most."""
FEATURE_ROWS = 64
"""Rows that a codec of features, which learns nothing, is measured on, at most; features may be large."""


@dataclass(frozen=True)
class Probed:
    """A codec, fitted where it learns something, and what it keeps of the teacher."""

    codec: RowCodec
    fidelity: Mapping[str, float]


def fit_and_measure(
    logit_codec: Codec | None,
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
) -> dict[str, Probed]:
    """Asks the teacher about rows drawn at random over the whole dataset, since folders are sorted by class.

    Args:
        logit_codec: for the stream of logits, not fitted yet; None where that is not among the configuration's streams.
        teacher, dataset, config, device: as for build_cache.

    Returns:
        For each stream its codec and its fidelity on rows that it was not fitted on: 512 of them, or a quarter of a
        small dataset. A single row serves for both.
    """
    wanted = FEATURE_ROWS
    if logit_codec is not None:
        wanted = MEASURED_ROWS + (FIT_ROWS if logit_codec.needs_fit else 0)
    generator = torch.Generator().manual_seed(view_seed(dataset.recipe.seed, "probe", 0) >> 1)
    rows = torch.randperm(len(dataset), generator=generator)[:wanted].tolist()
    codecs: dict[str, RowCodec] = {} if logit_codec is None else {LOGITS: logit_codec}
    answers = _ask_about(rows, codecs, teacher, dataset, config, device)
    found = {}
    for stream in config.streams:
        if stream == LOGITS and logit_codec is not None:
            found[stream] = _fit(logit_codec, answers[stream], teacher.head_weight)
        else:
            found[stream] = Probed(codecs[stream], measure_feature_fidelity(codecs[stream], answers[stream]))
    return found


def _fit(codec: Codec, logits: Tensor, head: Tensor | None) -> Probed:
    """The codec of the logits [R, C]; `head` [C, F] is the teacher's classifier, where it has one."""
    if not codec.needs_fit:
        return Probed(codec, measure_fidelity(codec, logits))
    measured = min(MEASURED_ROWS, max(1, len(logits) // 4))
    fitted = codec.fit(logits[measured:] if len(logits) > 1 else logits, None if head is None else head.float().cpu())
    return Probed(fitted, measure_fidelity(fitted, logits[:measured]))


def _ask_about(
    rows: list[int],
    codecs: dict[str, RowCodec],
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """Stream -> what the teacher says about view 0 of `rows`, of features the first few; float32 [R, ...] on the CPU.

    Adds the codecs of features, whose shape is known now, to `codecs`.
    """
    sampler = EpochSampler(rows, config.batch_size, shuffle=False)
    loader = ReplayLoader(dataset, sampler, teacher.input_normalization, device=device, num_workers=config.num_workers)
    answers: dict[str, list[Tensor]] = {stream: [] for stream in config.streams}
    for pixels in loader.pixel_batches():
        for stream, values in ask(teacher, loader, pixels, config.streams).items():
            if stream not in codecs:
                codecs[stream] = create_feature_codec(config.feature_codec, values.shape[1:])
            refuse_unheld(values, codecs[stream], stream, teacher.name, dataset.keys, pixels)
            room = FEATURE_ROWS - sum(map(len, answers[stream])) if stream != LOGITS else len(values)
            if room > 0:
                answers[stream].append(values[:room].float().cpu())
    return {stream: torch.cat(pieces) for stream, pieces in answers.items()}
