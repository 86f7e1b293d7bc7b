"""CacheWriter: the one way to write a cache, shard by shard.

    with CacheWriter.create("teacher.h5", spec) as writer:
        for shard in writer.missing():
            writer.write(shard, {"logits": logits[shard.start : shard.stop]})
        writer.finish()

A writer that was stopped resumes when it is created again. Dimensions: R rows of a shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from typing_extensions import Self

from kdkit.cache.extension import Extension, check_adds_views
from kdkit.cache.file import CacheFile
from kdkit.cache.format.metadata import CacheMetadata
from kdkit.cache.packing import pack as pack_shards
from kdkit.cache.places import check_writable, remove_remains
from kdkit.cache.sealing import ShardSealer
from kdkit.cache.shards.folder import INDEX_NAME, ShardFolder, packed_path, shard_folder
from kdkit.cache.shards.lock import writer_lock
from kdkit.cache.spec import CachePlan, CacheSpec
from kdkit.cache.spec_values import document, whole_number
from kdkit.cache.summary import describe_content
from kdkit.cache.write_errors import cache_write_errors
from kdkit.errors import CacheError, CacheIncompleteError, CacheLockedError
from kdkit.runtime import files

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class CacheWriter(ShardSealer):
    """Writes the shards of a cache, each durably and whole or not at all, and packs them into one file.

    `create` and `extend` hold the writer's lock until `finish`, `close` or the end of a `with` block; `join` holds
    none. Any number of processes and machines that share the file system may seal shards at the same time, each its
    own. A writer unpickles as one that was made with `join`.

    Attributes:
        path: path of the cache, finished or not: the packed file, or the folder where a folder of shards is extended.
        metadata: contents and origin of the cache.
    """

    def __init__(self, path: Path, metadata: CacheMetadata, work: ShardFolder | Extension | None) -> None:
        super().__init__(path, metadata, work)
        self._lock: ExitStack | None = None
        self._place: Path | None = None  # of the cache that it has finished

    @classmethod
    @cache_write_errors()
    def create(cls, path: str | Path, spec: CacheSpec | CachePlan) -> Self:
        """Starts a cache, or resumes the one at `path`; a finished one has no missing shards.

        Args:
            path: the packed file to write; shards are kept in `path`.parts until all are sealed.
            spec: contents and origin of the cache.

        Raises:
            CacheMismatchError: the cache at `path` was made with other settings; names the first field that differs.
            CacheLockedError: another process is writing it.
            ConfigError: the spec exceeds a limit of the format, or a codec was not fitted.
            CacheError: the folder cannot be written, or the disk is full.
        """
        path = Path(path)
        with ExitStack() as held:
            if not os.path.isfile(path):  # noqa: PTH113 -- unlike Path.is_file, false for a name that no file can have
                check_writable(path)
                folder = shard_folder(path)
                files.make_folder(folder)
                held.enter_context(writer_lock(folder))
                if not path.is_file():
                    parts = _resume_or_start(path, folder, spec)
                    return cls(path, parts.metadata, parts)._holding(held)
                held.close()  # another process packed it before this one had the lock
        stored = CacheFile(path).metadata
        spec.check_same(stored, path)
        remove_remains(path, stored.num_views)
        return cls(path, stored, None)

    @classmethod
    @cache_write_errors()
    def join(cls, path: str | Path) -> Self:
        """Opens the cache that another process has created, or extends next to its packed file, to seal shards of it.

        Args:
            path: the path that the cache was created with, or its folder of shards.

        Raises:
            CacheNotFoundError: nothing was created at `path`.
            CacheCorruptError: its index is damaged.
        """
        path = packed_path(Path(path))
        folder = shard_folder(path)
        old = CacheFile(path).metadata if path.is_file() else None
        if old is not None and not (folder / INDEX_NAME).is_file():
            return cls(path, old, None)
        parts = ShardFolder.open(folder)
        if old is not None:
            return cls(path, parts.metadata, Extension(path, old, parts))
        extension = Extension.joined(parts)
        return cls(path, parts.metadata, parts) if extension is None else cls(folder, *_work_of(extension))

    @classmethod
    @cache_write_errors()
    def extend(cls, path: str | Path, num_views: int) -> Self:
        """Starts or resumes the extension of a finished cache to more views; until `finish` it stays unchanged.

        Args:
            path: the packed file, its folder of shards, or the path that it would be packed to.
            num_views: total number of views of each sample, including existing views.

        Raises:
            CacheMismatchError: the cache has more views, or its folder holds the extension of another cache.
            CacheIncompleteError: its build has not finished.
            CacheLockedError: another process is writing it.
            ConfigError: no cache holds so many views, or `num_views` is not a whole number.
            CacheError: the folder cannot be written, or the disk is full.
        """
        num_views = whole_number("num_views", num_views)
        cache = CacheFile(path)
        check_adds_views(cache.path, cache.metadata, num_views)
        if num_views == cache.num_views:
            if cache.path.is_file():
                remove_remains(cache.path, num_views)
            return cls(cache.path, cache.metadata, None)
        folder = Extension.folder_of(cache.path)
        check_writable(cache.path if cache.path.is_file() else folder / INDEX_NAME)
        files.make_folder(folder)
        with ExitStack() as held:
            held.enter_context(writer_lock(folder))
            if CacheFile(cache.path).num_views != cache.num_views:
                raise CacheLockedError(f"the cache {str(cache.path)!r} was just extended by another process: run again")
            files.remove_leftovers(folder)
            extension = Extension.begin(cache.path, cache.metadata, num_views)
            return cls(cache.path, *_work_of(extension))._holding(held)

    def finish(self, *, pack: bool = True, record: Mapping[str, Any] = _NOTHING) -> Path:
        """Verifies all shards and packs them into one file at `path`; an extension replaces the cache in one step.

        A writer that has finished does nothing more here.

        Args:
            pack: whether the shards become one file; if not, the folder of shards is the cache. An extension stays what
                the cache was.
            record: time and cost of the build, plain JSON; the only part that differs between equal caches.

        Returns:
            Where the cache is. The lock is released.

        Raises:
            CacheIncompleteError: a shard is missing.
            CacheCorruptError: a shard has changed since it was sealed, and is missing from now on.
            CacheError: this writer was made with `join`, or was closed; or the disk is full.
            ConfigError: `record` is not plain JSON.
        """
        text = json.dumps(document("record", record))
        if self._place is not None or self._open_work() is None:
            return self._place or self.path
        if self._lock is None:
            raise CacheError(
                f"{str(self.path)!r} is finished by the process that created it: this writer has joined it, or was "
                "closed"
            )
        if missing := self.missing():
            raise CacheIncompleteError(f"{str(self.path)!r} cannot be finished: {len(missing)} shards are missing")
        self._place = self._finish(text, pack=pack)
        self.close()
        return self._place

    def _finish(self, record: str, *, pack: bool) -> Path:
        """Where the cache is, once its shards are verified and packed or counted; the JSON text `record` is kept."""
        work = self._work
        if isinstance(work, ShardFolder) and not pack:
            work.verify_all()
            return work.folder
        if isinstance(work, Extension):
            work.finish(record)
        elif work is not None:
            pack_shards(work, self.path, record)
        self._work = None
        return self.path

    def close(self) -> None:
        """Releases the lock; sealed shards stay, and `create` resumes with them."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:  # a lock belongs to one process
        return type(self), (self.path, self.metadata, self._work)

    def __repr__(self) -> str:
        missing, planned = len(self.missing()), self.metadata.num_shards
        return (
            f"CacheWriter({str(self.path)!r}: {describe_content(self.metadata, self.codecs)}; "
            f"{missing} of {planned} shards missing)"
        )

    def _holding(self, lock: ExitStack) -> Self:
        """This writer, which releases the lock from now on."""
        self._lock = lock.pop_all()
        return self


def _work_of(extension: Extension) -> tuple[CacheMetadata, Extension]:
    return extension.parts.metadata, extension


def _resume_or_start(path: Path, folder: Path, plan: CacheSpec | CachePlan) -> ShardFolder:
    """The shards of a cache that was stopped, or those of a new one; the folder exists and is locked."""
    files.remove_leftovers(folder)
    files.remove_leftovers(path.parent, path.name)
    if (folder / INDEX_NAME).is_file():
        parts = ShardFolder.open(folder)
        plan.check_same(parts.metadata, folder)
        return parts
    ShardFolder.remove_orphan_shards(folder)
    spec = plan.make_spec()
    spec.check_storable()
    return ShardFolder.create(folder, spec.metadata, spec.index_arrays)
