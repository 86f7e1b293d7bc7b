"""What a cache will be, and whether a cache that is there already is that one."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from kdkit.building.config import BuildConfig
from kdkit.building.fit import FIT_ROWS, fit_and_measure
from kdkit.cache.codecs import Codec, RowCodec, codec_of_size, create_codec, create_feature_codec, default_codec
from kdkit.cache.format.constants import BLOCK_ROWS, DIGEST_NAME, KEYS_NAME, LOGITS, codec_array_name
from kdkit.cache.format.keys import check_same_samples, key_digests, keys_sha256, pack_keys
from kdkit.cache.format.limits import check_storable
from kdkit.cache.format.metadata import CacheMetadata
from kdkit.cache.hdf5.write import Array
from kdkit.cache.lazy_arrays import stored_keys
from kdkit.cache.pixels import transform_versions
from kdkit.data import ReplayedDataset
from kdkit.errors import ClassMismatchError, ConfigError
from kdkit.recipe import ViewRecipe
from kdkit.runtime.compare import check_match
from kdkit.teachers import Teacher

_MAX_SHARD_BYTES = 256 << 20  # a shard is filled in memory
VIEWS_FIELD, KEYS_FIELD = "recipe.num_views", "dataset.keys_sha256"


def as_built(dataset: ReplayedDataset) -> ReplayedDataset:
    """The dataset as the teacher sees it.

    Raises:
        ConfigError: it skips what cannot be read.
    """
    if dataset.skips_unreadable:
        raise ConfigError("a cache has a row for each sample: a build cannot skip one; remove what cannot be read")
    return dataset.for_teacher()


def plan_cache(
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
    *,
    fit_rows: int = FIT_ROWS,
) -> tuple[CacheMetadata, dict[str, Array]]:
    """What a cache will be, its codecs fitted (to `fit_rows` at most) and measured: its metadata, its index' arrays.

    Raises:
        ConfigError: it would be more than a cache holds; found before the teacher is asked where that can be known.
        DatasetError: its keys would.
    """
    arrays = {DIGEST_NAME: key_digests(dataset.keys), KEYS_NAME: pack_keys(dataset.keys)}
    logit_codec, made_with = choose_codec(teacher, dataset, config), _made_with(teacher, dataset)
    known: dict[str, RowCodec] = {stream: create_feature_codec(config.feature_codec, (1,)) for stream in config.streams}
    known |= {} if logit_codec is None else {LOGITS: logit_codec}
    check_storable(_describe(known, dataset, config, made_with), arrays)
    probed = fit_and_measure(logit_codec, teacher, dataset, config, device, fit_rows=fit_rows)
    codecs = {stream: found.codec for stream, found in probed.items()}
    metadata = _describe(codecs, dataset, config, made_with)
    metadata = dataclasses.replace(metadata, fidelity={stream: found.fidelity for stream, found in probed.items()})
    for stream, codec in codecs.items():
        arrays |= {codec_array_name(stream, name): array for name, array in codec.arrays.items()}
    check_storable(metadata, arrays)
    return metadata, arrays


def _describe(
    codecs: Mapping[str, RowCodec], dataset: ReplayedDataset, config: BuildConfig, made_with: Mapping[str, Any]
) -> CacheMetadata:
    """The cache's metadata, but for its fidelity."""
    return CacheMetadata(
        num_rows=len(dataset),
        num_views=dataset.recipe.num_views,
        shard_rows=_shard_rows(config, sum(codec.row_bytes for codec in codecs.values())),
        streams={stream: {"codec": codec.to_dict(), "row_bytes": codec.row_bytes} for stream, codec in codecs.items()},
        **made_with,
    )


def _shard_rows(config: BuildConfig, row_bytes: int) -> int:
    """Whole blocks, as many as asked for, but no more than shards of a bounded size hold; one at least."""
    blocks = -(-config.shard_rows // BLOCK_ROWS)
    return max(1, min(blocks, _MAX_SHARD_BYTES // (row_bytes * BLOCK_ROWS))) * BLOCK_ROWS


def choose_codec(teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig) -> Codec | None:
    """The logits' codec, not fitted yet, for as many classes as teacher and dataset agree on; None without logits."""
    if LOGITS not in config.streams:
        return None
    if teacher.num_classes is None:
        raise ConfigError(f"the teacher {teacher.name!r} does not tell how many classes it has: set model.num_classes")
    names = dataset.class_names
    if names is not None and len(names) != teacher.num_classes:
        raise ClassMismatchError(
            f"the teacher {teacher.name!r} has {teacher.num_classes} classes, the dataset {len(names)}: "
            "give the teacher a class_map, or use a teacher trained on those classes"
        )
    if config.row_bytes is not None:
        return codec_of_size(config.codec, teacher.num_classes, config.row_bytes, **config.codec_options)
    name = config.codec or default_codec(teacher.num_classes).name
    return create_codec(name, teacher.num_classes, **config.codec_options)


def _made_with(teacher: Teacher, dataset: ReplayedDataset) -> dict[str, Any]:
    """The part of the metadata that a resumed build, or another run at the same path, must have in common."""
    return {
        "teacher": teacher.fingerprint(),
        "recipe": dataset.recipe.to_dict(),
        "dataset": {
            "keys_sha256": keys_sha256(dataset.keys),
            "class_names": None if dataset.class_names is None else list(dataset.class_names),
            "versions": transform_versions(),
        },
    }


def check_same_build(
    origin: Path,
    stored: CacheMetadata,
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    allow: Collection[str] = (),
) -> None:
    """Compares all that a cache was made with to what it would be made with now.

    Fields in `allow` may differ, but for those that say what the shards hold: streams, views, samples.

    Raises:
        CacheMismatchError: names the first field that differs and both values.
    """
    shown = f"the cache at {str(origin)!r}"
    made_with = {**dataclasses.asdict(stored), "recipe": ViewRecipe.completed(stored.recipe)}
    now = _made_with(teacher, dataset)
    check_match("teacher", made_with["teacher"], now["teacher"], shown, allow)
    check_match("recipe", made_with["recipe"], now["recipe"], shown, set(allow) - {VIEWS_FIELD})
    check_match("streams", _without_shapes(stored.streams), _planned_streams(teacher, dataset, config), shown)
    if made_with["dataset"]["keys_sha256"] != now["dataset"]["keys_sha256"]:
        check_same_samples(stored_keys(origin, stored.num_rows), dataset.keys, shown)
    check_match("dataset", made_with["dataset"], now["dataset"], shown, set(allow) - {KEYS_FIELD})


def _planned_streams(teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig) -> dict[str, Any]:
    """Stream -> what its codec is to be, as far as it is known before the teacher was asked."""
    codec = choose_codec(teacher, dataset, config)
    logits = {} if codec is None else {LOGITS: {"codec": codec.to_dict(), "row_bytes": codec.row_bytes}}
    return {stream: logits.get(stream, {"codec": {"name": config.feature_codec}}) for stream in config.streams}


def _without_shapes(streams: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The same of a cache: the shape of features follows from teacher and recipe, which are compared themselves."""
    return {
        stream: described if stream == LOGITS else {"codec": {"name": described["codec"]["name"]}}
        for stream, described in streams.items()
    }
