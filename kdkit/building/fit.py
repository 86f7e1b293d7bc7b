"""A look at the teacher before the build: what codecs are fitted to and measured on, and how large features are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdkit.building.config import BuildConfig
from kdkit.building.teacher import check_encodable, run_teacher
from kdkit.cache.codecs import Codec, RowCodec, create_feature_codec
from kdkit.cache.fidelity import measure_rows, summarise_rows
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.hdf5.write import Array
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader, translate_worker_errors
from kdkit.data.views.seed import view_seed
from kdkit.teachers import Teacher

FIT_ROWS = 16_384
"""Rows that a codec is fitted to, at most."""
MEASURED_ROWS = 512
"""Rows, others than those, that is measured on what codecs keep of each view, at most."""


@dataclass(frozen=True)
class Probed:
    """A codec, fitted where it learns something, and what it keeps of the teacher."""

    codec: RowCodec
    fidelity: Mapping[str, float]
    """In view 0, with "each": the rows 0, each, 2 each, ... are measured, here and in every view."""


@translate_worker_errors()
def fit_and_measure(
    logit_codec: Codec | None,
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
    *,
    fit_rows: int = FIT_ROWS,
) -> dict[str, Probed]:
    """Fits the codec of the logits, where it learns something, and measures what codecs keep of view 0.

    It is fitted on rows drawn at random over the whole dataset, since folders are sorted by class; and measured on
    others, spread evenly: 512 of them, or of a small dataset up to a quarter. A single row serves for both.

    Args:
        logit_codec: for the stream of logits, not fitted yet; None where that is not among the configuration's streams.
        teacher, dataset, config, device: as for build_cache.
        fit_rows: rows that it is fitted on, at most.
    """
    each = _spacing(logit_codec, len(dataset))
    codecs: dict[str, RowCodec] = {}
    if logit_codec is not None:
        codecs[LOGITS] = logit_codec
        if _fits(logit_codec):
            codecs[LOGITS] = _fit(logit_codec, _draw(dataset, each, fit_rows), teacher, dataset, config, device)
    measures: dict[str, list[Array]] = {stream: [] for stream in config.streams}
    for stream, values in _ask_about(range(0, len(dataset), each), codecs, teacher, dataset, config, device):
        measures[stream].append(measure_rows(codecs[stream], values, codecs[stream].encode(values)))
    return {
        stream: Probed(codecs[stream], {**summarise_rows(np.concatenate(pieces)), "each": each})
        for stream, pieces in measures.items()
    }


def num_looked_at(logit_codec: Codec | None, num_rows: int) -> int:
    """Images that the teacher is asked about before a build of so many rows, to fit and to measure."""
    measured = -(-num_rows // _spacing(logit_codec, num_rows))
    return measured + (max(1, min(FIT_ROWS, num_rows - measured)) if _fits(logit_codec) else 0)


def _fits(logit_codec: Codec | None) -> bool:
    """Whether it, not fitted yet, is to learn from what the teacher says."""
    return logit_codec is not None and logit_codec.needs_fit


def _spacing(logit_codec: Codec | None, num_rows: int) -> int:
    """From one row that is measured to the next."""
    return -(-num_rows // max(1, min(MEASURED_ROWS, num_rows // 4 if _fits(logit_codec) else num_rows)))


def _draw(dataset: ReplayedDataset, each: int, fit_rows: int) -> list[int]:
    """Rows to fit on: none of those that are measured, unless there are no others."""
    generator = torch.Generator().manual_seed(view_seed(dataset.recipe.seed, "probe", 0) >> 1)
    rows = torch.randperm(len(dataset), generator=generator)
    return rows[rows % each != 0][:fit_rows].tolist() or [0]


def _fit(
    codec: Codec,
    rows: Sequence[int],
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
) -> Codec:
    """The codec fitted on what the teacher says of `rows`, and on its classifier if it has one."""
    only = dataclasses.replace(config, streams=(LOGITS,))
    said = _ask_about(rows, {LOGITS: codec}, teacher, dataset, only, device)
    logits = torch.cat([values.float().cpu() for _, values in said])
    return codec.fit(logits, None if teacher.head_weight is None else teacher.head_weight.float().cpu())


def _ask_about(
    rows: Sequence[int],
    codecs: dict[str, RowCodec],
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
) -> Iterator[tuple[str, Tensor]]:
    """(stream, what the teacher says about view 0 of some of `rows`), [B, ...], batch by batch.

    Adds the codecs of features, whose shape is known now, to `codecs`.
    """
    sampler = EpochSampler(rows, config.batch_size, shuffle=False)
    loader = ReplayLoader(dataset, sampler, teacher.input_normalization, device=device, num_workers=config.workers)
    for pixels in loader.pixel_batches():
        for stream, values in run_teacher(teacher, loader, pixels, config.streams).items():
            if stream not in codecs:
                codecs[stream] = create_feature_codec(config.feature_codec, values.shape[1:])
            check_encodable(values, codecs[stream], stream, teacher.name, dataset.keys, pixels)
            yield stream, values
