"""Extension: further views for a finished cache, which stays readable as it is until all of them are sealed.

A packed cache gets a parts folder, with an index that counts all views and with the further views' shards; at
the end a new file is packed from both and renamed over the old. The shards of an unpacked cache go into its folder,
where readers ignore them; at the end its index is replaced by one that counts them. Until then `extension.json` in it
states their number, for the processes that join. Both need only one rename.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kdkit.cache.format.constants import MAX_VIEWS
from kdkit.cache.format.limits import check_storable
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.cache.hdf5.open import open_hdf5
from kdkit.cache.packing import check_no_further_views, index_arrays, pack
from kdkit.cache.shards.folder import INDEX_NAME, ShardFolder, shard_folder
from kdkit.errors import CacheError, CacheIncompleteError, CacheMismatchError
from kdkit.runtime import files
from kdkit.runtime.reading import read_json

PLAN_NAME = "extension.json"
_MAX_PLAN_BYTES = 4096


@dataclass(frozen=True)
class Extension:
    """Further views for the cache at `path`.

    Attributes:
        path: a packed file, or a parts folder.
        old: the metadata of the finished cache.
        parts: where the further views' shards are; its metadata counts all views.
    """

    path: Path
    old: CacheMetadata
    parts: ShardFolder

    @classmethod
    def folder_of(cls, path: Path) -> Path:
        """Where the further views' shards of the cache at `path` are kept."""
        return path if path.is_dir() else shard_folder(path)

    @classmethod
    def begin(cls, path: Path, old: CacheMetadata, num_views: int) -> Extension:
        """Starts or resumes an extension to `num_views` views; its folder exists and is locked.

        Raises:
            CacheMismatchError: the folder holds an extension of another cache, or fewer views than there are.
            ConfigError: a cache cannot hold so many views.
            CacheIncompleteError: it holds shards of views beyond `num_views`.
        """
        grown, folder = old.with_views(num_views), cls.folder_of(path)
        check_storable(grown, ())
        if path.is_dir():
            check_no_further_views(ShardFolder(path, grown))
            if _planned_views(path) != num_views:
                files.write_text(path / PLAN_NAME, json.dumps({"num_views": num_views}))
            return cls(path, old, ShardFolder(path, grown))
        files.remove_leftovers(path.parent, path.name)
        if (folder / INDEX_NAME).is_file():
            begun = ShardFolder.open(folder)
            if begun.metadata.identity_sha256 != grown.identity_sha256:
                raise CacheMismatchError(
                    f"{str(folder)!r} holds shards of another cache than {str(path)!r} is: delete that folder"
                )
            if num_views < old.num_views:  # what packing would make has fewer views than the file it would replace
                raise CacheMismatchError(
                    f"{str(folder)!r} is of {num_views} views, expected at least the {old.num_views} that "
                    f"{str(path)!r} has: it adds nothing; delete that folder"
                )
            if begun.metadata.num_views == num_views:
                return cls(path, old, begun)
            check_no_further_views(ShardFolder(folder, grown))
        else:
            ShardFolder.remove_orphan_shards(folder)
        with open_hdf5(path) as file:
            arrays = {name: file.read_array(name) for name in file.checksums() if not name.startswith("views/")}
        return cls(path, old, ShardFolder.create(folder, grown, arrays))

    @classmethod
    def joined(cls, parts: ShardFolder) -> Extension | None:
        """The extension in progress of the unpacked cache in `parts`; None if there is none."""
        num_views = _planned_views(parts.folder)
        if num_views is None or not parts.metadata.num_views < num_views <= MAX_VIEWS:
            return None
        grown = parts.metadata.with_views(num_views)
        check_storable(grown, ())
        return cls(parts.folder, parts.metadata, ShardFolder(parts.folder, grown))

    def missing(self) -> list[Shard]:
        """The shards of the further views that are not sealed, in order."""
        return self.parts.missing(self.old.num_views)

    def finish(self, build: str) -> None:
        """Makes the cache one of all views, in one step; `build`: JSON text of time and cost.

        Raises:
            CacheIncompleteError: a shard is missing.
            CacheCorruptError: a shard has changed since it was sealed.
        """
        if not self.path.is_dir():
            return pack(self.parts, self.path, build, packed_views=self.old.num_views)
        if missing := self.missing():
            raise CacheIncompleteError(f"{str(self.path)!r} cannot be extended: {len(missing)} shards are missing")
        self.parts.verify_all(self.old.num_views)
        for shard in self.parts.metadata.shards(self.old.num_views):
            self.parts.open_shard(shard)
        ShardFolder.create(self.path, self.parts.metadata, index_arrays(self.parts))
        files.remove_file(self.path / PLAN_NAME)
        return None


def _planned_views(folder: Path) -> int | None:
    """The number of views that the extension in progress in an unpacked cache plans; None if nothing states it."""
    try:
        plan = read_json(folder / PLAN_NAME, limit=_MAX_PLAN_BYTES, error=CacheError)
    except CacheError:
        return None
    found = plan.get("num_views") if isinstance(plan, dict) else None
    return found if type(found) is int else None


def check_adds_views(path: Path, old: CacheMetadata, num_views: int) -> None:
    """Checks that the cache at `path` has at most `num_views` views.

    Raises:
        CacheMismatchError: it has more.
    """
    if num_views < old.num_views:
        raise CacheMismatchError(
            f"the cache {str(path)!r} was made with recipe.num_views = {old.num_views}, this run has {num_views}: "
            "extend it to more, or train on fewer as it is"
        )


def is_extending(path: Path, num_views: int) -> bool:
    """Whether the parts folder of the packed cache at `path`, of so many views, holds an extension of it."""
    folder = shard_folder(path)
    return (folder / INDEX_NAME).is_file() and ShardFolder.open(folder).metadata.num_views > num_views
