"""The cache: what a teacher said, on disk. FORMAT.md in the project's cache/ folder describes the file."""

from kdkit.cache.codecs import Codec, available_codecs, create_codec
from kdkit.cache.reader import CachedTeacher, open_cache

__all__ = ["CachedTeacher", "Codec", "available_codecs", "create_codec", "open_cache"]
