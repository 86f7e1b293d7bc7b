"""CacheSpec: contents and origin of a cache to write, as plain data.

Dimensions: R rows, V views, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kdkit.cache.codecs import RowCodec
from kdkit.cache.format.constants import (
    ABSENT_NAME,
    BLOCK_ROWS,
    CONTENT_NAME,
    DIGEST_NAME,
    KEYS_NAME,
    LOGITS,
    codec_array_name,
)
from kdkit.cache.format.content import check_records
from kdkit.cache.format.keys import (
    MAX_ABSENT_BYTES,
    check_same_samples,
    check_unique_keys,
    key_digests,
    keys_sha256,
    pack_keys,
)
from kdkit.cache.format.limits import check_storable
from kdkit.cache.format.metadata import CacheMetadata
from kdkit.cache.hdf5.size import packed_num_bytes
from kdkit.cache.lazy_arrays import stored_index_arrays, stored_keys
from kdkit.cache.spec_values import bounded, check_class_names, check_codecs, document, flag, texts, whole_number
from kdkit.cache.types import Array
from kdkit.errors import CacheMismatchError, ConfigError
from kdkit.recipe import ViewRecipe
from kdkit.runtime.compare import check_match

_MAX_SHARD_BYTES = 256 << 20  # a shard is filled in memory
_UNKNOWN_TEACHER = {"name": "unknown", "dtype": "unknown", "weights_sha256": "unknown", "versions": {}}


class CachePlan(Protocol):
    """A plan that makes a `CacheSpec`: the spec itself, or a build, which must run its teacher first."""

    def check_same(self, stored: CacheMetadata, origin: Path) -> None:
        """Compares the plan with the unfinished or finished cache at `origin`.

        Raises:
            CacheMismatchError: names the first field that differs and both values.
        """
        ...

    def make_spec(self) -> CacheSpec:
        """Returns the spec of the cache to write; called only if there is no cache yet."""
        ...


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Contents and origin of a cache to write.

    To store logits [R, C], or [V, R, C] of several views, give `keys`, `num_views` and `codecs`; every other field has
    a default that means: not known.

    Raises:
        ConfigError: a field has a value that no cache can hold; names the field.
        DatasetError: a key occurs twice or holds NUL.
    """

    keys: Sequence[str]
    """The samples' keys in row order, R of them, each once: those of the dataset that students will train on."""

    num_views: int
    """Views V of each sample."""

    codecs: Mapping[str, RowCodec]
    """Stream name -> its codec, fitted if it has a fit: "logits" -> a Codec, a tap -> a FeatureCodec."""

    teacher: Mapping[str, Any] = field(default_factory=dict)
    """The teacher's fingerprint in plain JSON values, compared by a build that resumes; "name", "dtype",
    "weights_sha256" and "versions" are completed if they are missing."""

    recipe: ViewRecipe | Mapping[str, Any] = field(default_factory=ViewRecipe)
    """Recipe of the views, as a student sees them; its number of views is replaced by `num_views`."""

    class_names: Sequence[str] | None = None
    """Names of the C classes in the order of the logits, compared with a dataset's; None if they are not known."""

    shard_rows: int = 10_000
    """Rows of a shard, rounded up to whole thousands; fewer where a shard would be larger than 256 MiB."""

    fidelity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Stream name -> fidelity of its codec in view 0, as `kdkit.cache.fidelity` summarises it; with
    "each", every view is measured. Empty: not measured."""

    versions: Mapping[str, str] | None = None
    """Library -> its version, of those that drew the pixels; None if they are not known."""

    has_pixels: bool = False
    """Whether shards are sealed with hashes of the pixels that the teacher saw; without them none are compared."""

    names_classes: bool = True
    """Whether `class_names` are those of the logits; imported labels may be of other classes than the folders."""

    absent_keys: Sequence[str] = ()
    """Keys of samples that have no row, because they could not be read."""

    skipped: Sequence[str] = ()
    """Entries of the data that `skip_missing` left out, such as empty class folders: one text each."""

    content: Array | None = field(default=None, compare=False)
    """Records of the samples' content, uint8 [R, 28]: see `kdkit.cache.format.content`; None: not known."""

    content_kind: str = "files"
    """What `content` was computed of: "files", byte for byte, or "pixels"."""

    def __post_init__(self) -> None:
        plain = {
            "keys": texts("keys", self.keys, "sample keys"),
            "num_views": whole_number("num_views", self.num_views),
            "teacher": document("teacher", self.teacher),
            "recipe": self.recipe if isinstance(self.recipe, ViewRecipe) else document("recipe", self.recipe),
            "class_names": None if self.class_names is None else list(texts("class_names", self.class_names, "names")),
            "shard_rows": whole_number("shard_rows", self.shard_rows, " row"),
            "fidelity": document("fidelity", self.fidelity, finite=False),  # a row of zeros may have an infinite error
            "versions": None if self.versions is None else document("versions", self.versions),
            "has_pixels": flag("has_pixels", self.has_pixels),
            "names_classes": flag("names_classes", self.names_classes),
            "absent_keys": texts("absent_keys", self.absent_keys, "sample keys"),
            "skipped": texts("skipped", self.skipped, "texts"),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        check_codecs(self.codecs)
        check_class_names(self.class_names, self.codecs.get(LOGITS), names_classes=self.names_classes)
        check_records(self.content, self.content_kind, len(self.keys))
        check_unique_keys([*self.keys, *self.absent_keys])

    @cached_property
    def metadata(self) -> CacheMetadata:
        """The metadata document of the cache."""
        recipe = self.recipe.to_dict() if isinstance(self.recipe, ViewRecipe) else dict(self.recipe)
        return CacheMetadata(
            num_rows=len(self.keys),
            num_views=self.num_views,
            shard_rows=self._whole_shard_rows,
            streams={
                stream: {"codec": codec.to_dict(), "row_bytes": codec.row_bytes}
                for stream, codec in self.codecs.items()
            },
            teacher={**_UNKNOWN_TEACHER, **self.teacher},
            recipe={**recipe, "num_views": self.num_views},
            dataset={
                "keys_sha256": keys_sha256(self.keys),
                "class_names": self.class_names,
                **({} if self.versions is None else {"versions": self.versions}),
                **({} if self.has_pixels else {"has_pixels": False}),
                **({"num_absent": len(self.absent_keys)} if self.absent_keys else {}),
                **({} if self.content is None else {"content": self.content_kind}),
                **({"skipped": bounded(self.skipped)} if self.skipped else {}),
            },
            fidelity=self.fidelity,
        )

    @property
    def _whole_shard_rows(self) -> int:
        """Rows of whole blocks, as many as `shard_rows`, but no more than a shard of bounded size holds."""
        blocks = -(-self.shard_rows // BLOCK_ROWS)
        row_bytes = sum(codec.row_bytes for codec in self.codecs.values())
        return max(1, min(blocks, _MAX_SHARD_BYTES // (row_bytes * BLOCK_ROWS))) * BLOCK_ROWS

    @cached_property
    def index_arrays(self) -> dict[str, Array]:
        """Datasets of the index: keys, their digests, and the arrays of fitted codecs.

        Raises:
            DatasetError: a key holds NUL, or the keys are longer than a cache holds.
        """
        arrays = {DIGEST_NAME: key_digests(self.keys), KEYS_NAME: pack_keys(self.keys)}
        if self.absent_keys:
            arrays[ABSENT_NAME] = pack_keys(self.absent_keys, MAX_ABSENT_BYTES)
        if self.content is not None:
            arrays[CONTENT_NAME] = self.content
        return {**arrays, **self._codec_arrays}

    @property
    def _codec_arrays(self) -> dict[str, Array]:
        return {
            codec_array_name(stream, name): array
            for stream, codec in self.codecs.items()
            for name, array in codec.arrays.items()
        }

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed file; packing needs twice as many."""
        return packed_num_bytes(self.metadata, self.index_arrays)

    def check_storable(self) -> None:
        """Checks that readers will accept the cache, before anything is written.

        Raises:
            ConfigError: it exceeds a limit of the format; names the field, its value and its bound.
            DatasetError: its keys exceed one.
        """
        check_storable(self.metadata, self.index_arrays)

    def make_spec(self) -> CacheSpec:
        """This spec, with every codec ready to encode.

        Raises:
            ConfigError: a codec was not fitted.
        """
        for stream, codec in self.codecs.items():
            if codec.needs_fit:
                raise ConfigError(f"codec {codec.name!r} of stream {stream!r} was not fitted: call its fit(...) first")
        return self

    def check_same(self, stored: CacheMetadata, origin: Path) -> None:
        """Compares the spec with the unfinished or finished cache at `origin`; only `shard_rows` may differ.

        Raises:
            CacheMismatchError: names the first field that differs and both values.
        """
        shown, then, now = f"the cache at {str(origin)!r}", asdict(stored), asdict(self.metadata)
        for field_name in ("teacher", "recipe", "streams", "fidelity"):
            check_match(field_name, then[field_name], now[field_name], shown)
        if then["dataset"]["keys_sha256"] != now["dataset"]["keys_sha256"]:
            check_same_samples(stored_keys(origin, stored.num_rows), self.keys, shown)
        check_match("dataset", then["dataset"], now["dataset"], shown)
        fitted = stored_index_arrays(origin, "codecs/")
        for name, array in self._codec_arrays.items():
            if not np.array_equal(fitted.get(name, np.empty(0)), array):
                raise CacheMismatchError(f"{shown} was made with another array {name!r}: use the codec fitted for it")
