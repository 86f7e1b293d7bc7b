"""The path of a cache: whether it can be written, remains of a writer that died, and finished shards to pack."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from kdkit.cache.extension import Extension, is_extending
from kdkit.cache.file import CacheFile
from kdkit.cache.packing import pack
from kdkit.cache.shards.folder import ShardFolder, packed_path, shard_folder
from kdkit.cache.shards.lock import writer_lock
from kdkit.cache.write_errors import check_not_full
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


def pack_cache(path: str | Path) -> Path:
    """Packs the finished shards in `path`.parts into one file at `path`, and returns its path.

    Args:
        path: the packed file to write, or its folder of shards, which may be those of an extension.

    Raises:
        CacheNotFoundError: there are no shards.
        CacheIncompleteError: some are missing.
        CacheLockedError: they are being written.
    """
    path = packed_path(Path(path))
    folder = shard_folder(path)
    parts = ShardFolder.open(folder)
    with writer_lock(folder):
        if path.is_file():
            Extension.begin(path, CacheFile(path).metadata, parts.metadata.num_views).finish("{}")
        else:
            pack(parts, path)
    return path
