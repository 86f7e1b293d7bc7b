"""BuildPlan: the teacher, data and settings of a build, and whether an existing cache was made with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdkit.building.config import BuildConfig
from kdkit.building.fit import FIT_ROWS, fit_and_measure
from kdkit.building.scan import record_content
from kdkit.building.teacher import count_classes
from kdkit.cache.codecs import (
    Codec,
    CompactFeature,
    RowCodec,
    codec_of_size,
    create_codec,
    default_codec,
    feature_codec_for,
    multi_label_codec,
)
from kdkit.cache.codecs.record import RecordCodec
from kdkit.cache.content import CONTENT_FIELD, check_content
from kdkit.cache.format.constants import LOGITS, RECORDS
from kdkit.cache.format.content import CONTENT_BYTES
from kdkit.cache.format.keys import check_same_samples, keys_sha256
from kdkit.cache.format.metadata import CacheMetadata
from kdkit.cache.lazy_arrays import begun_at, stored_content, stored_keys
from kdkit.cache.matching import composed
from kdkit.cache.pixels import check_pixels, transform_versions
from kdkit.cache.spec import CacheSpec
from kdkit.cache.writer import CacheWriter
from kdkit.data import ReplayedDataset
from kdkit.data.sources.left_out import skipped_of
from kdkit.errors import ClassMismatchError, ConfigError
from kdkit.recipe import ViewRecipe
from kdkit.runtime.compare import check_match
from kdkit.teachers import Teacher
from kdkit.teachers.class_names import describe_count_mismatch

VIEWS_FIELD, KEYS_FIELD = "recipe.num_views", "dataset.keys_sha256"
_SHARDS_REPLAYED, _ROWS_REPLAYED = 16, 4  # number of sealed shards, and of rows of each, when a build resumes


@dataclass(frozen=True)
class BuildPlan:
    """The teacher, data and settings that a cache is made with; a `kdkit.cache.spec.CachePlan`."""

    teacher: Teacher
    """The frozen model to run, with a tap for each stream of features."""

    dataset: ReplayedDataset
    """Samples and recipe, as the teacher sees them."""

    config: BuildConfig
    """Streams, codecs, batch size and other settings."""

    device: torch.device | str = "cpu"
    """Where the teacher runs."""

    allow_mismatch: Collection[str] = ()
    """Fields, named as in the error, in which an existing cache may differ."""

    fit_rows: int = FIT_ROWS
    """Maximum number of rows that the codec of the logits is fitted to."""

    reads_content: bool = True
    """Whether the file of each sample is read, to record its content; an estimate only counts the bytes."""

    show_progress: bool = False
    """Whether reading the files, and fitting and measuring codecs, is shown on standard error."""

    def make_spec(self) -> CacheSpec:
        """Returns the spec of the cache, whose codecs are fitted and measured by running the teacher.

        Raises:
            ConfigError: the cache would exceed a limit of the format; raised before the teacher runs where possible.
            DatasetError: the keys would exceed one.
        """
        codec, config = self.choose_codec(), self.config
        one = feature_codec_for(config.feature_codec, config.feature_bytes, torch.zeros(1, 1))
        known: dict[str, RowCodec] = dict.fromkeys(config.streams, one) | self._records()
        spec = self._spec(known | ({} if codec is None else {LOGITS: codec}))
        spec.check_storable()
        if self.reads_content:
            records = record_content(self.dataset, self.config.workers, show_progress=self.show_progress)
            spec = replace(spec, content=records)
        shown: dict[str, Any] = {"fit_rows": self.fit_rows, "show_progress": self.show_progress}
        given = self.feature_codecs() if codec is None else {LOGITS: codec, **self.feature_codecs()}
        probed = fit_and_measure(given, self.teacher, self.dataset, self.config, self.device, **shown)
        return replace(
            spec,
            codecs={stream: found.codec for stream, found in probed.items()} | self._records(),
            fidelity={stream: found.fidelity for stream, found in probed.items()},
        )

    def _spec(self, codecs: Mapping[str, RowCodec]) -> CacheSpec:
        """The spec with these codecs, without its fidelity."""
        return CacheSpec(
            keys=self.dataset.keys,
            num_views=self.dataset.recipe.num_views,
            codecs=codecs,
            teacher=self.teacher.fingerprint(),
            recipe=self.dataset.recipe,
            class_names=self.teacher.class_names if self._is_nameless else self.dataset.class_names,
            shard_rows=self.config.shard_rows,
            versions=transform_versions(),
            has_pixels=True,
            absent_keys=sorted(self.dataset.absent),
            skipped=skipped_of(self.dataset.source),
            content=np.zeros((len(self.dataset), CONTENT_BYTES), dtype=np.uint8),
            content_kind=self.dataset.content.kind,
        )

    def choose_codec(self) -> Codec | None:
        """The logits' codec, not fitted yet, for the classes that teacher and dataset agree on; None without logits.

        Raises:
            ConfigError: a codec has no such size.
            ClassMismatchError: teacher and dataset have different class counts.
        """
        if LOGITS not in self.config.streams:
            return None
        name, names = self.teacher.name, self.dataset.class_names
        num_classes = count_classes(self.teacher, self.dataset)
        if num_classes == 0 or (names is not None and len(names) != num_classes):
            raise ClassMismatchError(describe_count_mismatch(f"the teacher {name!r}", num_classes, names or ()))
        config = self.config
        if self.dataset.is_multi_label:
            if config.row_bytes is not None:
                raise ConfigError("multi-label logits have codecs of one size each: leave out row_bytes (--bytes)")
            return multi_label_codec(config.codec, num_classes, **config.codec_options)
        if config.row_bytes is not None:
            return codec_of_size(config.codec, num_classes, config.row_bytes, **config.codec_options)
        return create_codec(config.codec or default_codec(num_classes).name, num_classes, **config.codec_options)

    def feature_codecs(self) -> dict[str, RowCodec]:
        """Stream of features -> its codec, where it does not follow from the configuration."""
        return {}

    def check_same(self, stored: CacheMetadata, origin: Path) -> None:
        """Compares the teacher, data and settings of the cache at `origin` with those of this build.

        Fields in `allow_mismatch` may differ, except those that determine what the shards hold: streams, views,
        samples.

        Raises:
            CacheMismatchError: names the first field that differs and both values.
        """
        shown, allow = f"the cache at {str(origin)!r}", set(self.allow_mismatch)
        names = stored.dataset["class_names"] if self._is_nameless else self.dataset.class_names
        now = {
            "keys_sha256": keys_sha256(self.dataset.keys),
            "class_names": composed(names),
            "has_pixels": True,
            **({"num_absent": len(self.dataset.absent)} if self.dataset.absent else {}),
        }
        then = {**asdict(stored)["dataset"], "has_pixels": stored.has_pixels}
        then["class_names"] = composed(then["class_names"])
        check_match("teacher", stored.teacher, self.teacher.fingerprint(), shown, allow)
        recipe = ViewRecipe.completed(stored.recipe)
        check_match("recipe", recipe, self.dataset.recipe.to_dict(), shown, allow - {VIEWS_FIELD})
        planned = self._planned_streams()
        check_match("streams", _as_planned(stored.streams, planned), planned, shown)
        if then["keys_sha256"] != now["keys_sha256"]:
            check_same_samples(stored_keys(origin, stored.num_rows), self.dataset.keys, shown)
        then.pop("content", None)  # compared sample by sample
        then.pop("skipped", None)  # what is left has been compared
        check_match("dataset", then, now, shown, allow - {KEYS_FIELD})
        if stored.content_kind is not None and CONTENT_FIELD not in allow:
            records = stored_content(origin, stored)
            check_content(self.dataset, records, stored.content_kind, begun_at(origin), shown)

    @property
    def _is_nameless(self) -> bool:
        """Whether the images have neither labels nor class names, so that the names are the teacher's."""
        return self.dataset.class_names is None and self.dataset.is_unlabelled

    def _planned_streams(self) -> dict[str, Any]:
        """Stream -> the description of its codec, as far as it is known before the teacher runs."""
        codec = self.choose_codec()
        logits = {} if codec is None else {LOGITS: {"codec": codec.to_dict(), "row_bytes": codec.row_bytes}}
        size = {} if self.config.feature_bytes is None else {"row_bytes": self.config.feature_bytes}
        features = {"codec": {"name": self.config.feature_codec, **size}}
        planned = {stream: logits.get(stream, features) for stream in self.config.streams}
        records = self._records().items()
        return planned | {name: {"codec": codec.to_dict(), "row_bytes": codec.row_bytes} for name, codec in records}

    def _records(self) -> dict[str, RowCodec]:
        """The codec of the views' parameters, which go into the cache if no recipe draws them."""
        recorded = self.dataset.recorded
        return {} if recorded is None else {RECORDS: RecordCodec((recorded.row_bytes,))}

    def check_same_pixels(self, writer: CacheWriter) -> None:
        """Replays some rows of the sealed shards, because a build must not resume with other images or libraries.

        Raises:
            CacheMismatchError: a row shows other pixels; names the sample and the library versions.
        """
        sealed = writer.sealed()
        for shard in sealed[:: max(1, len(sealed) // _SHARDS_REPLAYED)]:
            hashes = {shard.view: writer.pixel_crc32(shard)}
            made_with = writer.metadata.dataset.get("versions") or {}
            origin = f"the cache at {str(writer.path)!r}"
            check_pixels(self.dataset, np.arange(len(self.dataset)), hashes, made_with, origin, _ROWS_REPLAYED)


def as_built(dataset: ReplayedDataset) -> ReplayedDataset:
    """The dataset as the teacher sees it.

    Raises:
        ConfigError: the dataset skips unreadable samples.
    """
    if dataset.skips_unreadable:
        raise ConfigError('a build cannot skip samples on its way: leave them out with BuildConfig(unreadable="skip")')
    return dataset.for_teacher()


def _as_planned(streams: Mapping[str, Mapping[str, Any]], planned: Mapping[str, Any]) -> dict[str, Any]:
    """The streams of a cache, of features only what is planned: their shapes follow from teacher and recipe."""
    exact = (LOGITS, RECORDS)
    features = next((plan["codec"] for stream, plan in planned.items() if stream not in exact), {"name": ""})

    def codec_of(described: Mapping[str, Any]) -> dict[str, Any]:
        found = {key: described["codec"].get(key) for key in features}
        chosen = features["name"] == CompactFeature.name and found["name"] in CompactFeature.choices
        return {**found, "name": CompactFeature.name} if chosen else found

    return {
        stream: described if stream in exact else {"codec": codec_of(described)}
        for stream, described in streams.items()
    }
