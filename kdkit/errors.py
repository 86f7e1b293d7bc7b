"""Every error a user can cause or meet, under one base.

Each child is also the built-in error a caller would expect, so `except ValueError` keeps working.
A message says what arrived, what was expected and what to do next, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KdkitError(Exception):
    """Base of all kdkit errors; the command line prints it as one line and exits with 1."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError and OSError would add quotes or drop text


class ConfigError(KdkitError, ValueError):
    """A setting, argument or combination of them that cannot work."""


class UsageError(ConfigError):
    """A command line with a flag, value or object that the command does not take; its exit code is 2."""


class ShapeError(KdkitError, ValueError):
    """A tensor whose shape or dtype does not fit the call."""


class MissingTeacherError(KdkitError, RuntimeError):
    """A distillation task has neither a teacher nor a teacher output."""


class TeacherMemoryError(KdkitError, MemoryError):
    """A teacher that has not enough memory for a single image."""


class UnknownNameError(KdkitError, LookupError):
    """A name that no registry knows; the message suggests the nearest ones."""


class ClassMismatchError(KdkitError, ValueError):
    """Two parties of a run that count or order the classes differently."""


class CheckpointError(KdkitError, ValueError):
    """A weights file that cannot be read, is not allowed, or does not fit the model."""


class DatasetError(KdkitError, ValueError):
    """A dataset that is missing, empty, or without the identity that replay needs."""


class OutputExistsError(KdkitError, FileExistsError):
    """An output path that holds something already."""


class MissingDependencyError(KdkitError, ImportError):
    """An optional package that the called feature needs."""


class CacheError(KdkitError, OSError):
    """Base of everything that can go wrong with a teacher cache."""


class CacheNotFoundError(CacheError, FileNotFoundError):
    """No cache at the given path."""


class CacheCorruptError(CacheError):
    """A cache file whose structure or checksum is wrong; names file, view and rows."""


class CacheVersionError(CacheError):
    """A cache written in a format that this version cannot read."""


class CacheIncompleteError(CacheError):
    """A cache whose build has not finished."""


class CacheMismatchError(CacheError, ValueError):
    """A cache made with something else than what the run is about to use; names the field and both values."""


class CacheStreamError(CacheError, LookupError):
    """A stream that a cache does not hold; names those that it does, and how to build one that has it."""


class CacheDiskFullError(CacheError):
    """The file system had no room for a shard; the temporary file is gone."""


class CacheLockedError(CacheError):
    """Another process is writing this cache; names its owner and host."""


class NonFiniteOutputError(CacheError, ValueError):
    """The teacher said NaN or infinity, or a value that the codec cannot hold; lists sample keys."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that suggests up to three known names close to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
