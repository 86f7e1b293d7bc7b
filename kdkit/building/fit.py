"""The probe before a build: the teacher runs on some rows, to fit the codecs and measure them.

It also determines the shapes of features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdkit.building.config import BuildConfig
from kdkit.building.teacher import check_encodable, run_teacher
from kdkit.cache.codecs import Codec, FeatureCodec, HeadCodec, RowCodec, feature_codec_for
from kdkit.cache.encoding import encode_in_parts, measure_in_parts
from kdkit.cache.fidelity import FeatureSums, summarise_rows
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.types import Array
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader, translate_worker_errors
from kdkit.data.views.seed import view_seed
from kdkit.runtime.progress import Display, progress
from kdkit.teachers import Teacher

FIT_ROWS = 16_384
"""Maximum number of rows that the codec of the logits is fitted to."""
FEATURE_FIT_ROWS = 2_048
"""Maximum number of rows that a codec of features is fitted to."""
MEASURED_ROWS = 512
"""Maximum number of held-out rows for measuring fidelity, in each view."""

_FIT_NUMBERS = 1 << 25  # of the features that a codec is fitted to: 128 MiB
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
    given: Mapping[str, RowCodec],
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
    *,
    fit_rows: int = FIT_ROWS,
    show_progress: bool = False,
) -> dict[str, Probed]:
    """Fits the codecs that need a fit, and measures the fidelity of all codecs in view 0.

    They are fitted on rows drawn at random over the whole dataset, because folders are sorted by class. They are
    measured on other rows, spread evenly: 512 of them, or up to a quarter of a small dataset. If there is only one row,
    it serves for both.

    Args:
        given: stream -> its codec, fitted or not: that of the logits if they are a stream, and those of features that
            do not follow from the configuration.
        teacher, dataset, config, device: as for build_cache.
        fit_rows: maximum number of rows that the codec of the logits is fitted on.
        show_progress: whether progress is shown on standard error.
    """
    num_fitted = min(fit_rows, _max_fit_rows(given, config))
    each = measured_spacing(len(dataset), fits=num_fitted > 0)
    fitted, measured = _draw(dataset, each, num_fitted) if num_fitted else [], range(0, len(dataset), each)
    codecs = dict(given)
    measures: dict[str, list[Array]] = {stream: [] for stream in config.streams}
    sums = {stream: FeatureSums() for stream in config.streams}
    work = f"fitting and measuring codecs on outputs of {teacher.name}"
    with progress(work, len(fitted) + len(measured), "images", enabled=show_progress, brief=True) as advance:
        run = _Run(teacher, dataset, config, device, advance)
        if fitted:
            _fit(codecs, fitted, run)
        for stream, values in run.outputs(measured, config.streams, codecs):
            encoded = encode_in_parts(codecs[stream], values)
            measures[stream].append(measure_in_parts(codecs[stream], values, encoded, sums[stream]))
    found = {
        stream: Probed(
            codecs[stream], {**summarise_rows(np.concatenate(pieces)), **sums[stream].summary(), "each": each}
        )
        for stream, pieces in measures.items()
    }
    _warn_of_large_errors(found)
    return found


def _warn_of_large_errors(found: Mapping[str, Probed]) -> None:
    for stream, probed in found.items():
        error = probed.fidelity.get("relative_error_mean", 0.0)
        if error > _LARGE_ERROR:
            _logger.warning(
                "the codec %s of %d bytes per row keeps little of %s, its relative error is %.2f: take more "
                "feature_bytes, or int8",
                probed.codec.name,
                probed.codec.row_bytes,
                stream,
                error,
            )


def num_probed(logit_codec: Codec | None, num_rows: int, config: BuildConfig | None = None) -> int:
    """Number of images that the teacher runs on, to fit and measure codecs, before a build of `num_rows` rows."""
    most = _max_fit_rows({} if logit_codec is None else {LOGITS: logit_codec}, config or BuildConfig())
    measured = -(-num_rows // measured_spacing(num_rows, fits=most > 0))
    return measured + (max(1, min(most, num_rows - measured)) if most else 0)


def fit_sample_rows(codec: RowCodec, numel: int) -> int:
    """Maximum number of rows of `numel` numbers that the codec of a stream is fitted to; 0 if it needs no fit."""
    if not codec.needs_fit:
        return 0
    if isinstance(codec, Codec):
        return HeadCodec.max_fit_rows if isinstance(codec, HeadCodec) else FIT_ROWS
    return max(1, min(FEATURE_FIT_ROWS, _FIT_NUMBERS // numel))


def _max_fit_rows(given: Mapping[str, RowCodec], config: BuildConfig) -> int:
    """Maximum number of rows that the codecs are fitted to; 0 if none needs a fit."""
    codecs = [given.get(stream) or _feature_codec(config) for stream in {*config.streams, *given}]
    return max((fit_sample_rows(codec, 1) for codec in codecs), default=0)


def _feature_codec(config: BuildConfig) -> RowCodec:
    """A codec of features by the configuration, for rows of one number: whether it needs a fit is the same for all."""
    return feature_codec_for(config.feature_codec, config.feature_bytes, torch.zeros(1, 1))


def measured_spacing(num_rows: int, *, fits: bool = True) -> int:
    """The distance from one measured row to the next; where codecs are fitted, to none of these, there are fewer."""
    return -(-num_rows // max(1, min(MEASURED_ROWS, num_rows // 4 if fits else num_rows)))


def _draw(dataset: ReplayedDataset, each: int, fit_rows: int) -> list[int]:
    """Draws the rows to fit on; no measured row is among them, unless there are no others."""
    generator = torch.Generator().manual_seed(view_seed(dataset.recipe.seed, "probe", 0) >> 1)
    rows = torch.randperm(len(dataset), generator=generator)
    return rows[rows % each != 0][:fit_rows].tolist() or [0]


def _fit(codecs: dict[str, RowCodec], rows: Sequence[int], run: _Run) -> None:
    """Fits the codecs to the teacher's outputs on `rows`; those of logits also to its classifier if it has one."""
    head = run.teacher.head_weight
    for codec in codecs.values():
        if isinstance(codec, HeadCodec):
            codec.check_head(head)
    streams = [stream for stream in run.config.streams if codecs.get(stream, _feature_codec(run.config)).needs_fit]
    samples: dict[str, list[Tensor]] = {stream: [] for stream in streams}
    for stream, values in run.outputs(rows, streams, codecs):
        left = fit_sample_rows(codecs[stream], values[0].numel()) - sum(map(len, samples[stream]))
        if left > 0:
            samples[stream].append(values[:left].float().cpu())
    for stream, parts in samples.items():
        codec = codecs[stream]
        if isinstance(codec, Codec):
            codecs[stream] = codec.fit(torch.cat(parts), None if head is None else head.float().cpu())
        elif isinstance(codec, FeatureCodec):
            codecs[stream] = codec.fit(torch.cat(parts))


@dataclass(frozen=True)
class _Run:
    """The teacher on view 0 of some rows."""

    teacher: Teacher
    dataset: ReplayedDataset
    config: BuildConfig
    device: torch.device | str
    advance: Display

    def outputs(
        self, rows: Sequence[int], streams: Sequence[str], codecs: dict[str, RowCodec]
    ) -> Iterator[tuple[str, Tensor]]:
        """Pairs (stream, output [B, ...]), batch by batch.

        Adds to `codecs` those of features, whose shape is known with the first batch.
        """
        teacher, dataset, config = self.teacher, self.dataset, self.config
        sampler = EpochSampler(rows, config.batch_size, shuffle=False)
        normalization = teacher.input_normalization
        loader = ReplayLoader(dataset, sampler, normalization, device=self.device, num_workers=config.workers)
        for pixels in loader.pixel_batches():
            for stream, values in run_teacher(teacher, loader, pixels, streams).items():
                if stream not in codecs:
                    codecs[stream] = feature_codec_for(config.feature_codec, config.feature_bytes, values)
                check_encodable(values, codecs[stream], stream, teacher.name, dataset.keys, pixels)
                yield stream, values
            self.advance(len(pixels.row))
