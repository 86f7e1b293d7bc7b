"""The path of a cache: whether it can be written, remains of a writer that died, and finished shards to pack."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from kdkit.cache.extension import Extension, is_extending
from kdkit.cache.file import CacheFile
from kdkit.cache.packing import pack
from kdkit.cache.shards.folder import INDEX_NAME, ShardFolder, packed_path, shard_folder
from kdkit.cache.shards.lock import writer_lock
from kdkit.cache.write_errors import cache_write_errors, check_not_full
from kdkit.errors import CacheError
from kdkit.runtime import files


def check_writable(path: str | Path) -> None:
    """Checks that a cache can be written at `path`, before any work is done.

    Raises:
        CacheError: the folder of `path` cannot be made or written, or another file is in the way.
    """
    path = Path(path)
    shown = f"no cache can be written at {str(path)!r}"
    try:
        if path.is_dir():
            raise CacheError(f"{shown}: it is a folder; name a file, such as teacher.h5")
        if shard_folder(path).is_file():
            raise CacheError(f"{shown}: {str(shard_folder(path))!r} is in the way")
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        files.check_writable(path.parent)
    except CacheError:
        raise
    except OSError as error:
        check_not_full(path, error)
        raise CacheError(f"{shown}: {error.strerror}") from error


def remove_remains(path: Path, num_views: int) -> None:
    """Removes the shards that an interrupted packing of the cache at `path` left behind; ignores failures.

    The shards of an unfinished extension, whose plan has more views, stay.
    """
    folder = shard_folder(path)
    if folder.is_dir():
        with suppress(CacheError, OSError), writer_lock(folder):
            if not is_extending(path, num_views):
                files.remove_folder(folder)


@cache_write_errors()
def pack_cache(path: str | Path) -> Path:
    """Packs the finished shards in `path`.parts into one file at `path`, and returns its path.

    What a killed packing has left is finished or removed. A cache that is packed already stays as it is.

    Args:
        path: the packed file to write, or its folder of shards, which may be those of an extension.

    Raises:
        CacheNotFoundError: there is no cache.
        CacheIncompleteError: some shards are missing.
        CacheLockedError: they are being written.
        CacheCorruptError: a shard, or the packed file, is damaged.
    """
    path = packed_path(Path(path))
    folder = shard_folder(path)
    if path.is_file() and not (folder / INDEX_NAME).exists():
        remove_remains(path, CacheFile(path).num_views)
        return path
    parts = ShardFolder.open(folder)
    with writer_lock(folder):
        files.remove_leftovers(folder)
        files.remove_leftovers(path.parent, path.name)
        if not path.is_file():
            pack(parts, path)
        elif CacheFile(path).metadata == parts.metadata:  # killed after it was packed, before the shards were removed
            files.remove_folder(folder)
        else:
            Extension.begin(path, CacheFile(path).metadata, parts.metadata.num_views).finish("{}")
    return path
