"""Plain values from files of torch.save: numbers, texts, lists, tuples, dicts and arrays of numbers, nothing else.

torch.load would need numpy's own constructors among its safe globals. Here no callable of numpy, of torch or of Python
is ever called by a pickle: the few names that plain arrays need lead to the constructors of this module, which check
dtype and size first. Every other name is refused before it is imported.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from kdkit.errors import DatasetError
from kdkit.importers._pickle_size import check_pickle_size

MAX_BYTES = 64 << 20
"""Greatest size of one file, and of the pickle in it; 400 views of an image take about 100 kB."""
_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_JOBLIB_STARTS = (b"\x78", b"\x1f\x8b", b"BZ", b"\xfd7z")  # zlib (joblib's compress=True), gzip, bz2, xz
_ENCRYPTED = 0x1
_MAX_SIDES = 4


def read_plain(content: bytes, origin: str) -> Any:
    """The value that torch.save wrote.

    Args:
        content: the bytes of the file.
        origin: its name, for errors.

    Raises:
        DatasetError: the file is not of torch.save, or holds anything but plain values; names `origin`.
    """
    if len(content) > MAX_BYTES:
        raise DatasetError(f"{origin} has {len(content):,} bytes, expected at most {MAX_BYTES:,}")
    pickled = _pickle_of(content, origin)
    try:
        check_pickle_size(pickled)
        value = _PlainUnpickler(io.BytesIO(pickled)).load()
    except DatasetError as error:  # from one of the constructors below
        raise DatasetError(f"{origin} holds {error}, which is not read: expected plain numbers and arrays") from None
    except Exception as error:  # a pickle of an attacker's can raise anything
        raise DatasetError(f"{origin} is damaged: {type(error).__name__}: {str(error)[:200]}") from None
    return value


def _pickle_of(content: bytes, origin: str) -> bytes:
    """The pickle in a file of torch.save: member NAME/data.pkl of an uncompressed zip archive."""
    if not content.startswith(b"PK"):
        kind = "a file of joblib, which is a pickle of its own kind" if content.startswith(_JOBLIB_STARTS) else "no zip"
        raise DatasetError(f"{origin} is {kind}: expected a file of torch.save (1.6 or later); save it again with it")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [member for member in archive.infolist() if member.filename.split("/")[1:] == ["data.pkl"]]
            if len(members) != 1:
                raise DatasetError(f"{origin} has {len(members)} members NAME/data.pkl, expected 1 as in torch.save's")
            member = members[0]
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
                raise DatasetError(f"{origin} is compressed or encrypted within, which torch.save never does")
            if member.file_size > len(content):
                raise DatasetError(f"{origin} claims a pickle larger than the file")
            return archive.read(member)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{origin} is a damaged file of torch.save: {error}") from None


class _PlainUnpickler(pickle.Unpickler):
    """Knows a few names, all of them constructors of this module."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        found = _CONSTRUCTORS.get(f"{module}.{name}")
        if found is None:
            raise DatasetError(f"the name {f'{module}.{name}'[:100]!r}")
        return found

    def persistent_load(self, identity: Any) -> NoReturn:
        raise DatasetError("a tensor")


class PlainArray:
    """An array of numbers, empty until its pickled state fills it."""

    def __init__(self) -> None:
        self.values: np.ndarray[Any, Any] = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not (isinstance(dtype, _DType) and isinstance(content, bytes) and _is_shape(shape)):
            raise DatasetError("an array that is not made of bytes")
        if math.prod(shape) * dtype.dtype.itemsize != len(content):
            raise DatasetError(f"an array of {len(content)} bytes for the shape {list(shape)}")
        flat = np.frombuffer(content, dtype.dtype)
        self.values = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


class _DType:
    """A dtype of plain numbers, as a pickle builds it: its name first, its byte order after."""

    def __init__(self, name: Any) -> None:
        if name not in _DTYPES:
            raise DatasetError(f"an array of dtype {str(name)[:40]!r}")
        self.dtype = np.dtype(name).newbyteorder("<")

    def __setstate__(self, state: Any) -> None:
        _, order, *structure = state
        if order not in ("<", "|", "=") or any(part is not None for part in structure[:3]):
            raise DatasetError("an array of structured or big-endian numbers")


def _is_shape(shape: Any) -> bool:
    is_tuple = isinstance(shape, tuple) and len(shape) <= _MAX_SIDES
    return is_tuple and all(type(side) is int and 0 <= side <= MAX_BYTES for side in shape)


def _new_array(*_: Any) -> PlainArray:
    return PlainArray()


def _new_dtype(name: Any, *_: Any) -> _DType:
    return _DType(name)


def _scalar(dtype: Any, content: Any) -> int | float | bool:
    """A number of numpy's as one of Python's."""
    array = PlainArray()
    array.__setstate__((1, (), dtype, False, content))
    number: int | float | bool = array.values.item()
    return number


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocols before 3 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise DatasetError("bytes in another encoding than latin1")
    return text.encode("latin-1")


def _no_bytes(*arguments: Any) -> bytes:
    """How protocols before 3 write empty bytes."""
    if arguments:
        raise DatasetError("a call of bytes")
    return b""


def _ndarray(*_: Any) -> NoReturn:
    """Stands for numpy.ndarray where a pickle names it; never called by an honest one."""
    raise DatasetError("a call of numpy.ndarray")


_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _ndarray,
    "numpy.dtype": _new_dtype,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    "builtins.bytes": _no_bytes,
    **{f"numpy.{core}.multiarray._reconstruct": _new_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
