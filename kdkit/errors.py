"""Every error a user can cause or meet, under one base.

Each child is also the built-in error a caller would expect, so `except ValueError` keeps working.
A message states what arrived, what was expected and what to do next, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from unicodedata import category

_MAX_MESSAGE, _MESSAGE_HEAD, _MESSAGE_TAIL = 2000, 1500, 400  # characters: a name of megabytes may come from a file


class KdkitError(Exception):
    """Base of all kdkit errors; the command line prints it as one line and exits with 1."""

    def __str__(self) -> str:
        text = printable(str(self.args[0])) if self.args else ""  # KeyError and OSError would add quotes or drop text
        return text if len(text) <= _MAX_MESSAGE else f"{text[:_MESSAGE_HEAD]} ... {text[-_MESSAGE_TAIL:]}"


class ConfigError(KdkitError, ValueError):
    """A setting, argument or combination of them that cannot work."""


class UsageError(ConfigError):
    """A command line with a flag, value or positional argument that the command does not take; its exit code is 2."""


class ShapeError(KdkitError, ValueError):
    """A tensor whose shape or dtype does not fit the call."""


class MissingTeacherError(KdkitError, RuntimeError):
    """A distillation task has neither a teacher nor a teacher output, or the output lacks what its loss needs."""


class DeviceMemoryError(KdkitError, MemoryError):
    """The device has too little memory for a step; names the batch size and the precision."""


class TeacherMemoryError(DeviceMemoryError):
    """The device has too little memory to run the teacher on a single image."""


class UnknownNameError(KdkitError, LookupError):
    """A name that is in no registry; the message suggests the nearest ones."""


class ClassMismatchError(KdkitError, ValueError):
    """Teacher, student, data or cache disagree on the number or the order of the classes."""


class NonFiniteLossError(KdkitError, ArithmeticError):
    """The loss became NaN or infinite; names the step and its terms."""


class OtherRankError(KdkitError, RuntimeError):
    """Another rank of a distributed run failed; its message is repeated."""


class CheckpointError(KdkitError, ValueError):
    """A weights file that cannot be read, is not allowed, or does not fit the model."""


class DatasetError(KdkitError, ValueError):
    """A dataset that is missing, empty, or without the sample keys that replay needs."""


class UnreadableError(DatasetError):
    """An image that cannot be read, or cannot be shown in a view; names it.

    Attributes:
        samples: key -> reason of each such image, where all of them were looked for.
    """

    samples: Mapping[str, str] = MappingProxyType({})


class LabelError(DatasetError):
    """A label that is not a class index, or is out of range; names the sample."""


class WriteError(KdkitError, OSError):
    """A file or folder that the file system refused to write."""


class DiskFullError(WriteError):
    """The file system had no room for a file; the temporary file is gone."""


class OutputError(WriteError):
    """An output folder that cannot be made or written."""


class OutputExistsError(KdkitError, FileExistsError):
    """An output path that already exists."""


class MissingDependencyError(KdkitError, ImportError):
    """An optional package that the called feature needs is not installed."""


class CacheError(KdkitError, OSError):
    """Base of all errors of a teacher cache."""


class CacheNotFoundError(CacheError, FileNotFoundError):
    """No cache at the given path."""


class CacheCorruptError(CacheError):
    """A cache file whose structure or checksum is wrong; names file, view and rows."""


class CacheVersionError(CacheError):
    """A cache written in a format that this version cannot read."""


class CacheIncompleteError(CacheError):
    """A cache whose build has not finished."""


class CacheMismatchError(CacheError, ValueError):
    """A cache that was made with another setting than this run uses; names the field and both values."""


class CacheStreamError(CacheError, LookupError):
    """A stream that a cache does not hold; names the streams that it holds, and how to build a cache with this one."""


class CacheWriteError(CacheError, WriteError):
    """A file of a cache that the file system refused to write."""


class CacheDiskFullError(CacheWriteError, DiskFullError):
    """The file system had no room for a file of a cache; the temporary file is gone."""


class CacheLockedError(CacheError):
    """Another process is writing this cache; names the process and its host."""


class NonFiniteOutputError(CacheError, ValueError):
    """The teacher's output holds NaN, infinity or a value that the codec cannot hold; lists sample keys."""


def printable(text: str) -> str:
    """The text with control characters escaped, apart from newline and tab: a name may come from anyone's file.

    A terminal obeys escape sequences, and bidirectional controls show text in another order than it has.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" or category(c) == "Zs" else repr(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """The first line of another package's error, for one of kdkit's own; its type's name where it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that suggests up to three known names close to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
