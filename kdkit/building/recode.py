"""Recoding: a finished cache in a smaller codec, or with fewer views; the teacher does not run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdkit.building.build import BuildReport
from kdkit.building.fit import FIT_ROWS, fit_sample_rows, measured_spacing
from kdkit.building.merge import report_on
from kdkit.building.piece import Piece
from kdkit.building.rewrite import Rewrite, write_rows
from kdkit.cache import CachedTeacher, Codec
from kdkit.cache.codecs import (
    CompactFeature,
    RowCodec,
    codec_of_size,
    create_codec,
    feature_codec_for,
    multi_label_codec,
)
from kdkit.cache.format.constants import BLOCK_ROWS, LOGITS
from kdkit.cache.types import Array
from kdkit.data.views.seed import view_seed
from kdkit.errors import ConfigError
from kdkit.runtime.progress import progress

_NEARLY_EXACT = ("float32", "float16", "int8")


def recode_cache(
    path: str | Path,
    output: str | Path,
    *,
    codec: str | None = None,
    row_bytes: int | None = None,
    codec_options: dict[str, Any] | None = None,
    feature_codec: str | None = None,
    feature_bytes: int | None = None,
    num_views: int | None = None,
    show_progress: bool = False,
) -> BuildReport:
    """Writes a cache again in other codecs, or with the first views alone.

    The fidelity of a new codec is measured in every view on rows that it was not fitted on, relative to the decoded
    rows of the old one; so the old one must be float32, float16 or int8. Without a new codec, rows keep their bytes. A
    recoding that was stopped resumes when this function is called again.

    Args:
        path: the cache.
        output: the packed file to write; another one.
        codec: codec of the logits; with `row_bytes` alone, lowrank if float16 would take more.
        row_bytes: maximum bytes per row of logits, for lowrank and topk.
        codec_options: options of the codec, e.g. {"k": 10} for topk.
        feature_codec: codec of all other streams, float32, float16, int8, sparse, dense or compact; compact if only the
            bytes are given.
        feature_bytes: bytes per row of each stream of features, for sparse, dense and compact.
        num_views: number of views to keep; all by default.
        show_progress: whether progress is shown on standard error.

    Raises:
        ConfigError: nothing would change, the cache has fewer views, or its own codec is too coarse to measure the
            fidelity of another.
        CacheMismatchError: another cache is at `output`.
        CacheError: the output cannot be written, or the disk is full.
    """
    begun, cache, output = time.monotonic(), CachedTeacher(path), Path(output)
    if output.resolve() == cache.path.resolve():
        raise ConfigError(f"the output {str(output)!r} is the cache itself, which stays as it is: name another file")
    views = cache.num_views if num_views is None else num_views
    if not 1 <= views <= cache.num_views:
        raise ConfigError(f"the cache {str(path)!r} has {cache.num_views} views, expected 1 to as many, got {views}")
    codecs = _features(cache, feature_codec, feature_bytes)
    if codec is not None or row_bytes is not None:
        _check_nearly_exact(cache, LOGITS)
        codecs[LOGITS] = _fit(cache, _logit_codec(cache, codec, row_bytes, codec_options or {}))
    elif codec_options:
        raise ConfigError(f"codec_options are of a codec, and there is none: got {codec_options!r}")
    if views == cache.num_views and not codecs:
        raise ConfigError("nothing would change: give --codec, --bytes, --feature-codec, --feature-bytes or --views")
    rewrite = Rewrite([Piece(cache, np.arange(cache.num_rows))], codecs=codecs, num_views=views)
    with progress(f"recoding {cache.path}", views * cache.num_rows, "rows", enabled=show_progress) as advance:
        place = write_rows(rewrite, output, {"recoded": cache.identity}, advance)
    return report_on(place, 0, begun)


def _logit_codec(cache: CachedTeacher, name: str | None, row_bytes: int | None, options: dict[str, Any]) -> Codec:
    """The new codec of the logits, not fitted yet."""
    num_classes = cache.num_classes
    if cache.is_multi_label:
        if row_bytes is not None:
            raise ConfigError("multi-label logits have codecs of one size each: leave out row_bytes (--bytes)")
        return multi_label_codec(name, num_classes, **options)
    if row_bytes is not None:
        return codec_of_size(name, num_classes, row_bytes, **options)
    assert name is not None
    return create_codec(name, num_classes, **options)


def _features(cache: CachedTeacher, name: str | None, row_bytes: int | None) -> dict[str, RowCodec]:
    """The new codecs of the features: those that are not in this one."""
    if name is None and row_bytes is None:
        return {}
    name = name or CompactFeature.name
    features = {stream: codec for stream, codec in cache.codecs.items() if stream != LOGITS}
    changed = [s for s, codec in features.items() if codec.name != name or row_bytes not in (None, codec.row_bytes)]
    for stream in changed:
        _check_nearly_exact(cache, stream)
    return {stream: _feature_codec(cache, stream, name, row_bytes) for stream in changed}


def _feature_codec(cache: CachedTeacher, stream: str, name: str, row_bytes: int | None) -> RowCodec:
    """The new codec of a stream of features, fitted if it needs a fit to rows of view 0, none of which are measured."""
    first = cache.codecs[stream].decode(cache.read_encoded(np.arange(min(cache.num_rows, BLOCK_ROWS)), 0, stream))
    codec = feature_codec_for(name, row_bytes, first)
    if not codec.needs_fit:
        return codec
    rows = _rows_to_fit(cache)[: fit_sample_rows(codec, codec.numel)]
    return codec.fit(cache.codecs[stream].decode(cache.read_encoded(rows, 0, stream)))


def _check_nearly_exact(cache: CachedTeacher, stream: str) -> None:
    cache.check_exists(stream)
    name = cache.codecs[stream].name
    if name.removeprefix("sigmoid_") not in _NEARLY_EXACT:
        raise ConfigError(
            f"the {stream} of {str(cache.path)!r} are in the codec {name}, which has lost too much to measure another "
            f"by: recode a cache in {', '.join(_NEARLY_EXACT)}, or build one"
        )


def _fit(cache: CachedTeacher, codec: Codec) -> Codec:
    """The codec fitted to rows of view 0, drawn as a build draws them, none of which are measured."""
    if not codec.needs_fit:
        return codec
    rows = _rows_to_fit(cache)
    logits = [
        cache.codecs[LOGITS].decode(cache.read_encoded(rows[first : first + BLOCK_ROWS], 0))
        for first in range(0, len(rows), BLOCK_ROWS)
    ]
    return codec.fit(torch.cat(logits).float())


def _rows_to_fit(cache: CachedTeacher) -> Array:
    generator = torch.Generator().manual_seed(view_seed(cache.recipe.seed, "probe", 0) >> 1)
    rows: Array = torch.randperm(cache.num_rows, generator=generator).numpy()
    each = measured_spacing(cache.num_rows)
    fitted = rows[rows % each != 0][:FIT_ROWS]
    return fitted if len(fitted) else rows[:1]
