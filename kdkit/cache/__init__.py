"""The cache: a teacher's outputs on disk. cache/FORMAT.md in the project describes the file."""

from kdkit.cache.codecs import Codec, available_codecs, create_codec, register_codec
from kdkit.cache.mixture import CacheMixture
from kdkit.cache.open import open_cache
from kdkit.cache.reader import CachedTeacher, CacheReader
from kdkit.cache.spec import CacheSpec
from kdkit.cache.writer import CacheWriter

__all__ = [
    "CacheMixture",
    "CacheReader",
    "CacheSpec",
    "CacheWriter",
    "CachedTeacher",
    "Codec",
    "available_codecs",
    "create_codec",
    "open_cache",
    "register_codec",
]
