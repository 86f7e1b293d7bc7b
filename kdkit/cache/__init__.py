"""The cache: a teacher's outputs on disk. cache/FORMAT.md in the project describes the file.

Where to look:
    open.py         `open_cache`; opening.py, lazy_arrays.py check and read the file; file.py reads its contents
    reader.py       rows of a batch -> decoded outputs; payload.py gathers the encoded rows, mixture.py averages caches
                 and a live teacher, checked by parts.py; selection.py takes a part of the classes
    codecs/         encode and decode a row; encoding.py applies them to a shard; fidelity.py measures the loss
    matching.py     sample -> cache row; pixels.py checks that student and teacher see the same pixels
    content.py      checks that the images' files are those of the build
    writer.py       `CacheWriter`, given a spec.py, checked by spec_values.py; sealing.py, shards/ write shards,
                 packing.py joins them in one file
    extension.py    further views of a finished cache; places.py prepares its path; write_errors.py types write errors
    format/, hdf5/  the documents in the file, and the file itself
    statistics.py   the teacher's confidence for each row and view
    overview.py     `kdkit cache info`; summary.py has every detail, plot.py draws
    export.py       writes decoded rows; config.py configures the commands on a cache
    types.py        shared types
"""

from kdkit.cache.codecs import Codec, available_codecs, create_codec, register_codec
from kdkit.cache.mixture import CacheMixture
from kdkit.cache.open import open_cache
from kdkit.cache.reader import CachedTeacher, CacheReader
from kdkit.cache.selection import ClassSelection
from kdkit.cache.spec import CacheSpec
from kdkit.cache.writer import CacheWriter

__all__ = [
    "CacheMixture",
    "CacheReader",
    "CacheSpec",
    "CacheWriter",
    "CachedTeacher",
    "ClassSelection",
    "Codec",
    "available_codecs",
    "create_codec",
    "open_cache",
    "register_codec",
]
