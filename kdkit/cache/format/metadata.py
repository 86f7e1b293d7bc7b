"""The metadata document of a cache: contents, origin, and with them the plan of its shards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kdkit.cache.format.constants import (
    BLOCK_ROWS,
    FORMAT_NAME,
    FORMAT_VERSION,
    MAX_ROWS,
    MAX_SHARDS,
    MAX_VIEWS,
)
from kdkit.cache.format.content import CONTENT_KINDS
from kdkit.cache.format.json import Fields, parse_json
from kdkit.cache.format.streams import check_fidelity, check_stream
from kdkit.errors import CacheCorruptError, CacheVersionError


@dataclass(frozen=True)
class Shard:
    """One sealed unit of work: rows [start, stop) of one view."""

    view: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Number of rows in the shard."""
        return self.stop - self.start

    @property
    def file_name(self) -> str:
        """Its name in the parts folder."""
        return f"v{self.view:04d}-r{self.start:010d}.h5"

    def __str__(self) -> str:
        return f"view {self.view}, rows {self.start} to {self.stop - 1}"


@dataclass(frozen=True)
class CacheMetadata:
    """The metadata document: contents and origin of a cache. Equal builds have equal documents."""

    num_rows: int
    """Samples R."""
    num_views: int
    """Views V of each sample."""
    shard_rows: int
    """Rows of each shard but a view's last; a multiple of BLOCK_ROWS."""
    streams: Mapping[str, Mapping[str, Any]]
    """Stream name -> {"codec": its dict form, for features with a row's shape, "row_bytes": bytes per row}."""
    teacher: Mapping[str, Any]
    """The teacher's fingerprint."""
    recipe: Mapping[str, Any]
    """The view recipe's dict form."""
    dataset: Mapping[str, Any]
    """{"keys_sha256": of the keys in row order, "class_names": list or null, and if there are any "versions" of the
    libraries that drew the pixels, "has_pixels": false where the cache was made without them, "num_absent": number of
    samples that were left out, if there are any, "content": kind of the content records, if there are any, "skipped":
    {"count", "first"}, entries of the data that `skip_missing` left out, if there are any}."""
    fidelity: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """Stream name -> fidelity of its codec in view 0, and "each": the rows 0, each, 2 each, ... of every
    view were measured. Older caches lack it."""

    def shards(self, first_view: int = 0) -> Iterator[Shard]:
        """The plan: every shard, view by view."""
        for view in range(first_view, self.num_views):
            yield from self.shards_of(view)

    def shards_of(self, view: int) -> Iterator[Shard]:
        """The plan of one view."""
        for start in range(0, self.num_rows, self.shard_rows):
            yield Shard(view, start, min(start + self.shard_rows, self.num_rows))

    def plans(self, shard: Shard, first_view: int = 0) -> bool:
        """Whether the plan, from `first_view` on, holds this shard."""
        stop = min(shard.start + self.shard_rows, self.num_rows)
        starts = shard.start % self.shard_rows == 0 and 0 <= shard.start < self.num_rows
        return first_view <= shard.view < self.num_views and starts and shard.stop == stop

    @property
    def num_shards(self) -> int:
        """Number of planned shards."""
        return self.num_views * -(-self.num_rows // self.shard_rows)

    @property
    def all_row_bytes(self) -> int:
        """Bytes of one encoded row of all streams together."""
        return sum(map(self.row_bytes, self.streams))

    def measures_views(self, stream: str) -> bool:
        """Whether the fidelity of `stream` was measured in every view."""
        return "each" in self.fidelity.get(stream, {})

    def measured_rows(self, stream: str, start: int, stop: int) -> range:
        """The rows from `start` to before `stop` that are measured in every view."""
        each = int(self.fidelity[stream]["each"])
        return range(-(-start // each) * each, stop, each)

    @property
    def has_pixels(self) -> bool:
        """Whether the pixel hashes are those of images that the teacher saw; otherwise they are meaningless zeros."""
        return bool(self.dataset.get("has_pixels", True))

    @property
    def num_absent(self) -> int:
        """Samples that the build left out, because they could not be read; they have no rows."""
        return int(self.dataset.get("num_absent", 0))

    @property
    def num_skipped(self) -> int:
        """Entries of the data, such as empty class folders, that were left out on request."""
        return int(self.dataset.get("skipped", {}).get("count", 0))

    @property
    def content_kind(self) -> str | None:
        """Kind of the content records: "files" or "pixels"; None if the cache has none, like older ones."""
        return self.dataset.get("content")

    def row_bytes(self, stream: str) -> int:
        """Bytes of one encoded row of `stream`."""
        return int(self.streams[stream]["row_bytes"])

    def to_json(self) -> str:
        """The canonical text: sorted names, no spaces."""
        document = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return _canonical(document)

    def with_views(self, num_views: int) -> CacheMetadata:
        """The document of the same cache with another number of views."""
        recipe = {**self.recipe, "num_views": num_views}
        return dataclasses.replace(self, num_views=num_views, recipe=recipe)

    @cached_property
    def identity_sha256(self) -> str:
        """SHA-256 by which a shard knows its cache: of the canonical text without the numbers of views.

        A view does not depend on how many others there are, so shards stay true when a cache is extended.
        """
        document = json.loads(self.to_json())
        del document["num_views"]
        document["recipe"].pop("num_views", None)
        return hashlib.sha256(_canonical(document).encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str, origin: str) -> CacheMetadata:
        """The document that `to_json` wrote; `origin` names the file in errors.

        Raises:
            CacheVersionError: the document's format version is not one this kdkit reads.
            CacheCorruptError: it is not such a document.
        """
        origin = f"{origin}: the metadata"
        fields = Fields(parse_json(text, origin), origin)
        if fields.text("format") != FORMAT_NAME:
            raise CacheCorruptError(f"{origin} is not that of a {FORMAT_NAME}")
        version = fields.integer("version", 1, 1 << 31)
        if version > FORMAT_VERSION:
            raise CacheVersionError(
                f"{origin} has format version {version}, this kdkit reads up to version {FORMAT_VERSION}: "
                "upgrade kdkit, or rebuild the cache"
            )
        fields.expect_names({"format", "version"} | {field.name for field in dataclasses.fields(cls)})
        metadata = cls(
            num_rows=fields.integer("num_rows", 0, MAX_ROWS),
            num_views=fields.integer("num_views", 1, MAX_VIEWS),
            shard_rows=fields.integer("shard_rows", BLOCK_ROWS, MAX_ROWS),
            **{name: fields.mapping(name) for name in ("streams", "teacher", "recipe", "dataset", "fidelity")},
        )
        metadata._check(origin)
        return metadata

    def _check(self, origin: str) -> None:
        """Checks the fields that the rest of kdkit relies on."""
        if self.shard_rows % BLOCK_ROWS:
            raise CacheCorruptError(f"{origin}: shard_rows is {self.shard_rows}, expected a multiple of {BLOCK_ROWS}")
        if self.num_shards > MAX_SHARDS:
            raise CacheCorruptError(f"{origin}: it plans more than {MAX_SHARDS} shards")
        if not self.streams:
            raise CacheCorruptError(f"{origin}: it has no stream")
        for name, described in self.streams.items():
            check_stream(name, described, origin)
        check_fidelity(self.fidelity, self.streams, origin)
        teacher, dataset = Fields(self.teacher, f"{origin}: teacher"), Fields(self.dataset, f"{origin}: dataset")
        for field in ("name", "dtype", "weights_sha256"):
            teacher.text(field)
        teacher.mapping("versions")
        dataset.text("keys_sha256")
        if dataset.optional_texts("class_names") == []:
            raise CacheCorruptError(f"{origin}: dataset: class_names is empty, expected names or null")
        dataset.optional_mapping("versions")
        dataset.optional_flag("has_pixels", default=True)
        if "num_absent" in dataset.names:
            dataset.integer("num_absent", 1, MAX_ROWS)
        if "skipped" in dataset.names:
            skipped = Fields(dataset.mapping("skipped"), f"{origin}: dataset: skipped")
            if skipped.integer("count", 1, MAX_ROWS) < len(skipped.optional_texts("first") or ()):
                raise CacheCorruptError(f"{origin}: dataset: skipped lists more entries than its count")
        if "content" in dataset.names and dataset.text("content") not in CONTENT_KINDS:
            raise CacheCorruptError(f"{origin}: dataset: content is neither {' nor '.join(CONTENT_KINDS)}")


def _canonical(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
