"""The probe before a build: the teacher runs on some rows, to fit the codecs and measure them.

It also determines the shapes of features.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdkit.building.config import BuildConfig
from kdkit.building.teacher import check_encodable, run_teacher
from kdkit.cache.codecs import Codec, RowCodec, feature_codec_for
from kdkit.cache.encoding import encode_in_parts, measure_in_parts
from kdkit.cache.fidelity import summarise_rows
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.types import Array
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader, translate_worker_errors
from kdkit.data.views.seed import view_seed
from kdkit.teachers import Teacher

FIT_ROWS = 16_384
"""Maximum number of rows that a codec is fitted to."""
MEASURED_ROWS = 512
"""Maximum number of held-out rows for measuring fidelity, in each view."""

_LARGE_ERROR = 0.5  # relative error of features: a quarter of their squared length is lost
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probed:
    """A codec, fitted if it needs a fit, and its fidelity."""

    codec: RowCodec
    fidelity: Mapping[str, float]
    """Fidelity in view 0, and "each": the rows 0, each, 2 each, ... are measured in every view."""


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
    """Fits the codec of the logits, if it needs a fit, and measures the fidelity of all codecs in view 0.

    The codec is fitted on rows drawn at random over the whole dataset, because folders are sorted by class. It is
    measured on other rows, spread evenly: 512 of them, or up to a quarter of a small dataset. If there is only one row,
    it serves for both.

    Args:
        logit_codec: codec of the logits, not fitted yet; None if logits are not among the configuration's streams.
        teacher, dataset, config, device: as for build_cache.
        fit_rows: maximum number of rows that the codec is fitted on.
    """
    each = _spacing(logit_codec, len(dataset))
    codecs: dict[str, RowCodec] = {}
    if logit_codec is not None:
        codecs[LOGITS] = logit_codec
        if _fits(logit_codec):
            codecs[LOGITS] = _fit(logit_codec, _draw(dataset, each, fit_rows), teacher, dataset, config, device)
    measures: dict[str, list[Array]] = {stream: [] for stream in config.streams}
    for stream, values in _run_on(range(0, len(dataset), each), codecs, teacher, dataset, config, device):
        measures[stream].append(measure_in_parts(codecs[stream], values, encode_in_parts(codecs[stream], values)))
    found = {stream: summarise_rows(np.concatenate(pieces)) for stream, pieces in measures.items()}
    for stream, fidelity in found.items():
        if fidelity.get("relative_error_mean", 0.0) > _LARGE_ERROR:
            _logger.warning(
                "the codec %s of %d bytes per row keeps little of %s, its relative error is %.2f: take more "
                "feature_bytes, or int8",
                codecs[stream].name,
                codecs[stream].row_bytes,
                stream,
                fidelity["relative_error_mean"],
            )
    return {stream: Probed(codecs[stream], {**fidelity, "each": each}) for stream, fidelity in found.items()}


def num_probed(logit_codec: Codec | None, num_rows: int) -> int:
    """Number of images that the teacher runs on, to fit and measure codecs, before a build of `num_rows` rows."""
    measured = -(-num_rows // _spacing(logit_codec, num_rows))
    return measured + (max(1, min(FIT_ROWS, num_rows - measured)) if _fits(logit_codec) else 0)


def _fits(logit_codec: Codec | None) -> bool:
    """Whether the codec is yet to be fitted to the teacher's outputs."""
    return logit_codec is not None and logit_codec.needs_fit


def _spacing(logit_codec: Codec | None, num_rows: int) -> int:
    """The distance from one measured row to the next."""
    return -(-num_rows // max(1, min(MEASURED_ROWS, num_rows // 4 if _fits(logit_codec) else num_rows)))


def _draw(dataset: ReplayedDataset, each: int, fit_rows: int) -> list[int]:
    """Draws the rows to fit on; no measured row is among them, unless there are no others."""
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
    """The codec fitted to the teacher's logits on `rows`, and to its classifier if it has one."""
    only = dataclasses.replace(config, streams=(LOGITS,))
    outputs = _run_on(rows, {LOGITS: codec}, teacher, dataset, only, device)
    logits = torch.cat([values.float().cpu() for _, values in outputs])
    return codec.fit(logits, None if teacher.head_weight is None else teacher.head_weight.float().cpu())


def _run_on(
    rows: Sequence[int],
    codecs: dict[str, RowCodec],
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
) -> Iterator[tuple[str, Tensor]]:
    """Pairs (stream, output [B, ...]) of the teacher on view 0 of `rows`, batch by batch.

    Adds to `codecs` those of features, whose shape is known with the first batch.
    """
    sampler = EpochSampler(rows, config.batch_size, shuffle=False)
    loader = ReplayLoader(dataset, sampler, teacher.input_normalization, device=device, num_workers=config.workers)
    for pixels in loader.pixel_batches():
        for stream, values in run_teacher(teacher, loader, pixels, config.streams).items():
            if stream not in codecs:
                codecs[stream] = feature_codec_for(config.feature_codec, config.feature_bytes, values)
            check_encodable(values, codecs[stream], stream, teacher.name, dataset.keys, pixels)
            yield stream, values
